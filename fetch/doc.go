// Package fetch brings URLs into slots: the queue, the workers, the pipeline and the retries, and the SPS routes
// over them.
//
// # The life of a fetch
//
// POST → [ParseRequest] → store.Enqueue (durable before the 202) → a worker claims the one whose turn it is (priority,
// place, not paused, its time has come) → its digest is read, if the request only says where → a slot is reserved →
// attempts: source.Open → read → hash ‖ write → checkpoints → length and digest are checked → store.BeginInstall
// (the point of no return) → Writer.Commit (the manifest is written last) → store.Finish.
//
// DELETE → store.Delete decides in one transaction: a queued fetch is cancelled; a running one is marked, its worker's
// context is cancelled with errCancelled, the partial is removed, then the row says cancelled and the caller gets
// the answer; one that is installing goes on; a final one is pruned.
//
// A pause, or the end of its window, cancels the worker with errPaused or errOutside: the partial stays, the row is queued.
// [Manager.Change] notes what is wanted, steer makes the flight follow it.
//
// POST of an upload is no fetch: its body goes through a pipeline of its own into a reserved slot, and is committed or
// dropped before the answer.
//
// Stopping cancels the workers with errShutdown: partial and checkpoint stay, the rows go back to the queue.
//
// # Guarantees
//
// A fetch that was accepted is not lost. Finished means that a slot holds exactly the bytes of the digest asked for.
// When DELETE answers cancelled, the partial is off the disk and the connection closed. A partial is continued only
// if its source proves that it is the same file, or the digest at the end refuses it.
package fetch
