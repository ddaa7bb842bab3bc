package slots

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

const (
	sector     = 2048
	isoDepth   = 8       // directories and file of a path
	isoRecords = 4096    // records of one directory
	isoDirMax  = 1 << 20 // bytes of one directory
	isoFileMax = 4 << 10 // bytes read of the version file
	textMax    = 64      // characters of a version
)

// errTree says that the directories of an ISO are malformed or beyond our bounds.
var errTree = errors.New("bad ISO 9660 directory")

// InspectISO reads the volume id of an ISO 9660 image of size bytes, and the first line of the file of that
// path inside it. The path is compared without regard to case and to the ";1" of ISO names; empty means none.
// The version is empty if the file is missing, or if the way to it is malformed or beyond bounds. The error
// wraps [ErrNotISO] if this is no ISO; any other is an error of r.
//
// The image is foreign: nothing is allocated by a length read from it, no place is visited twice, and no read
// goes beyond size.
func InspectISO(r io.ReaderAt, size int64, versionFile string) (volumeID, version string, err error) {
	var pvd [sector]byte
	if size < 17*sector {
		return "", "", fmt.Errorf("cannot read ISO: %w: %d bytes are too few", ErrNotISO, size)
	}
	if err := readFull(r, pvd[:], 16*sector); err != nil {
		return "", "", fmt.Errorf("cannot read ISO: %w", err)
	}
	blocks := int64(binary.LittleEndian.Uint32(pvd[80:]))
	switch {
	case pvd[0] != 1 || string(pvd[1:6]) != "CD001":
		return "", "", fmt.Errorf("cannot read ISO: %w: no primary volume descriptor", ErrNotISO)
	case binary.LittleEndian.Uint16(pvd[128:]) != sector:
		return "", "", fmt.Errorf("cannot read ISO: %w: block size is not %d", ErrNotISO, sector)
	case blocks < 17 || blocks*sector > size: // hybrid images are padded, so they may be longer
		return "", "", fmt.Errorf("cannot read ISO: %w: volume has %d blocks, file %d bytes", ErrNotISO, blocks, size)
	}
	volumeID = printable(string(pvd[40:72]), 32)
	version, err = readVersion(isoTree{r: r, size: size}, pvd[156:190], versionFile)
	if err != nil && !errors.Is(err, errTree) {
		return volumeID, "", fmt.Errorf("cannot read ISO: %w", err)
	}
	return volumeID, version, nil
}

// isoTree is the part of an image that may be read.
type isoTree struct {
	r    io.ReaderAt
	size int64
}

// isoEntry is one directory record.
type isoEntry struct {
	start, length int64 // bytes
	dir           bool
	name          string
}

// parseRecord takes one directory record that is complete in b.
func parseRecord(b []byte) (isoEntry, error) {
	if len(b) < 34 || int(b[32]) > len(b)-33 {
		return isoEntry{}, errTree
	}
	return isoEntry{
		// The extended attribute record, of b[1] blocks, comes before the data.
		start:  (int64(binary.LittleEndian.Uint32(b[2:])) + int64(b[1])) * sector,
		length: int64(binary.LittleEndian.Uint32(b[10:])),
		dir:    b[25]&2 != 0,
		name:   string(b[33 : 33+int(b[32])]),
	}, nil
}

// readVersion walks to the file of this path and returns its first line.
func readVersion(t isoTree, root []byte, path string) (string, error) {
	parts := strings.FieldsFunc(path, func(c rune) bool { return c == '/' })
	if len(parts) == 0 {
		return "", nil
	}
	if len(parts) > isoDepth {
		return "", errTree
	}
	at, err := parseRecord(root)
	if err != nil {
		return "", err
	}
	at.dir = true
	seen := make(map[int64]bool)
	for _, part := range parts {
		if !at.dir || seen[at.start] {
			return "", errTree
		}
		seen[at.start] = true
		if at, err = t.find(at, part); err != nil {
			return "", err
		}
	}
	if at.dir || seen[at.start] {
		return "", errTree
	}
	if err := t.inside(at); err != nil {
		return "", err
	}
	var buf [isoFileMax]byte
	text := buf[:min(at.length, isoFileMax)]
	if err := readFull(t.r, text, at.start); err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return printable(line, textMax), nil
}

// inside refuses an extent that is not wholly in the file.
func (t isoTree) inside(e isoEntry) error {
	if e.start < 17*sector || e.start > t.size || e.length > t.size-e.start {
		return errTree
	}
	return nil
}

// find looks for a name in a directory, sector by sector, for no record crosses their border.
func (t isoTree) find(dir isoEntry, name string) (isoEntry, error) {
	if err := t.inside(dir); err != nil || dir.length > isoDirMax {
		return isoEntry{}, errTree
	}
	var buf [sector]byte
	records := 0
	for done := int64(0); done < dir.length; done += sector {
		b := buf[:min(sector, dir.length-done)]
		if err := readFull(t.r, b, dir.start+done); err != nil {
			return isoEntry{}, err
		}
		for len(b) > 0 && b[0] != 0 { // a zero length fills the sector up
			n := int(b[0])
			if n > len(b) {
				return isoEntry{}, errTree
			}
			if records++; records > isoRecords {
				return isoEntry{}, errTree
			}
			e, err := parseRecord(b[:n])
			if err != nil {
				return isoEntry{}, err
			}
			b = b[n:]
			if sameName(e.name, name) {
				return e, nil
			}
		}
	}
	return isoEntry{}, fmt.Errorf("%w: no %q", errTree, name)
}

// sameName compares a name on the ISO, as VERSION.TXT;1 or VERSION.;1, with one from the configuration. The
// names of a directory itself and of its parent are the bytes 0 and 1, which nobody configures.
func sameName(onDisk, want string) bool {
	onDisk, _, _ = strings.Cut(onDisk, ";")
	return strings.EqualFold(strings.TrimSuffix(onDisk, "."), strings.TrimSuffix(want, "."))
}

// readFull reads all of b at off; less is an error.
func readFull(r io.ReaderAt, b []byte, off int64) error {
	n, err := r.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
