// Package ontap lets clients of NetApp's ONTAP REST API drive the box as if it were a cluster: /api/cluster with its
// downloads, jobs, packages and updates. It is a translation and nothing else: one queue, one set of slots, and one key for
// a download, which is the key of the fetch in the SPS dialect and the uuid of the job in this one.
//
// What real clients force on a server is in the contract's section 7; comments here name its rules.
package ontap
