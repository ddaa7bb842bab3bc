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

// errAbsent says that there is no such file.
var errAbsent = fmt.Errorf("%w: no such file", errTree)

// InspectISO reads the volume id of an ISO 9660 image of size bytes, and the first line of the file of that
// path inside it. The path is compared without regard to case and to the ";1" of ISO names, and with the names of Rock Ridge;
// empty means none.
// The version is empty if the file is missing, or if the way to it is malformed or beyond bounds. The error
// wraps [ErrNotISO] if this is no ISO; any other is an error of r.
//
// The image is foreign: nothing is allocated by a length read from it, no place is visited twice, and no read
// goes beyond size.
func InspectISO(r io.ReaderAt, size int64, versionFile string) (volumeID, version string, err error) {
	t, err := openISO(r, size)
	if err != nil {
		return "", "", fmt.Errorf("cannot read ISO: %w", err)
	}
	version, err = t.version(versionFile)
	if err != nil && !errors.Is(err, errTree) {
		return t.volumeID, "", fmt.Errorf("cannot read ISO: %w", err)
	}
	return t.volumeID, version, nil
}

// openISO reads the primary volume descriptor. The error wraps [ErrNotISO], or is one of r.
func openISO(r io.ReaderAt, size int64) (isoTree, error) {
	t := isoTree{r: r, size: size}
	var pvd [sector]byte
	if size < 17*sector {
		return t, fmt.Errorf("%w: %d bytes are too few", ErrNotISO, size)
	}
	if err := readFull(r, pvd[:], 16*sector); err != nil {
		return t, err
	}
	blocks := int64(binary.LittleEndian.Uint32(pvd[80:]))
	switch {
	case pvd[0] != 1 || string(pvd[1:6]) != "CD001":
		return t, fmt.Errorf("%w: no primary volume descriptor", ErrNotISO)
	case binary.LittleEndian.Uint16(pvd[128:]) != sector:
		return t, fmt.Errorf("%w: block size is not %d", ErrNotISO, sector)
	case blocks < 17 || blocks*sector > size: // hybrid images are padded, so they may be longer
		return t, fmt.Errorf("%w: volume has %d blocks, file %d bytes", ErrNotISO, blocks, size)
	}
	t.volumeID = printable(string(pvd[40:72]), 32)
	t.root = [34]byte(pvd[156:190])
	return t, nil
}

// isoTree is the part of an image that may be read.
type isoTree struct {
	r        io.ReaderAt
	size     int64
	volumeID string
	root     [34]byte // the record of the root directory
}

// isoEntry is one directory record.
type isoEntry struct {
	start, length int64 // bytes
	dir           bool
	name          string
	alias         string // its name by Rock Ridge; empty if it has none
}

// parseRecord takes one directory record that is complete in b.
func parseRecord(b []byte) (isoEntry, error) {
	if len(b) < 34 || int(b[32]) > len(b)-33 {
		return isoEntry{}, errTree
	}
	end := 33 + int(b[32])
	return isoEntry{
		// The extended attribute record, of b[1] blocks, comes before the data.
		start:  (int64(binary.LittleEndian.Uint32(b[2:])) + int64(b[1])) * sector,
		length: int64(binary.LittleEndian.Uint32(b[10:])),
		dir:    b[25]&2 != 0,
		name:   string(b[33:end]),
		alias:  alternate(b[min(end+1-int(b[32])%2, len(b)):]),
	}, nil
}

// alternate is the name in the system use area of a record (SUSP 1.12 and RRIP 1.12, 4.1.4), without which a long name is but
// the first letters of it. One that goes on elsewhere is not followed: it has more than 200 characters.
func alternate(b []byte) string {
	name := ""
	for len(b) >= 5 && int(b[2]) >= 5 && int(b[2]) <= len(b) {
		if string(b[:2]) == "NM" {
			name += string(b[5:b[2]])
		}
		b = b[b[2]:]
	}
	return name
}

// version is the first line of the file of this path.
func (t isoTree) version(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	at, err := t.locate(path)
	if err != nil {
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

// locate walks to the file of this path. The error wraps errAbsent or errTree, or is one of the reader.
func (t isoTree) locate(path string) (isoEntry, error) {
	parts := strings.FieldsFunc(path, func(c rune) bool { return c == '/' })
	if len(parts) == 0 || len(parts) > isoDepth {
		return isoEntry{}, errTree
	}
	at, err := parseRecord(t.root[:])
	if err != nil {
		return at, err
	}
	at.dir = true
	seen := make(map[int64]bool)
	for _, part := range parts {
		if !at.dir || seen[at.start] {
			return at, errTree
		}
		seen[at.start] = true
		if at, err = t.find(at, part); err != nil {
			return at, err
		}
	}
	if at.dir || seen[at.start] {
		return at, errTree
	}
	return at, t.inside(at)
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
			if sameName(e.name, name) || strings.EqualFold(e.alias, name) {
				return e, nil
			}
		}
	}
	return isoEntry{}, errAbsent
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
