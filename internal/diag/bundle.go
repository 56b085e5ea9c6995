package diag

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"
)

const (
	// maxFiles and maxNode bound what is taken of the archive of another node, whose
	// twill may be of another version, or not be twill at all.
	maxFiles = 500
	maxNode  = 256 << 20
	// maxWindow bounds the memory for decompressing it.
	maxWindow = 32 << 20
)

// Bundle is an archive with the archives of several nodes, each in a directory of its own.
// Its methods are safe for concurrent use.
type Bundle struct {
	dir string

	mu sync.Mutex
	to *archive
}

// NewBundle begins a bundle. All files are in the directory dir.
func NewBundle(w io.Writer, dir string) (*Bundle, error) {
	to, err := newArchive(w)
	return &Bundle{dir: dir, to: to}, err
}

// Taken is what a bundle has taken of one node.
type Taken struct {
	Files, Bytes int
	Bad          []string // doctor's bad findings, a line each, with remedies after them
}

// Add adds what Pack has written on a node. If that is not whole, what came before the
// error is in the bundle.
func (b *Bundle) Add(node string, packed io.Reader) (t Taken, err error) {
	z, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return t, fmt.Errorf("decompress: %w", err)
	}
	defer z.Close()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		switch {
		case errors.Is(err, io.EOF):
			if t.Files == 0 {
				return t, errors.New("the archive is empty")
			}
			return t, nil
		case err != nil:
			return t, fmt.Errorf("read its archive: %w", err)
		}
		_, name, _ := strings.Cut(h.Name, "/") // all are in one directory
		if h.Typeflag != tar.TypeReg || !fs.ValidPath(name) || h.Size > maxPart || t.Files == maxFiles || t.Bytes+int(h.Size) > maxNode {
			return t, fmt.Errorf("read its archive: %.100q with %d bytes does not belong in it", h.Name, h.Size)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			return t, fmt.Errorf("read its archive: %w", err)
		}
		if err := b.add(node+"/"+name, body); err != nil {
			return t, err
		}
		t.Files++
		t.Bytes += len(body)
		if name == doctorPage {
			t.Bad = badLines(string(body))
		}
	}
}

// Note adds a file that says why a node's archive is missing or not whole.
func (b *Bundle) Note(node string, why error) error {
	return b.add(node+".error", []byte(why.Error()+"\n"))
}

func (b *Bundle) add(name string, body []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.to.add(b.dir+"/"+name, body)
}

// Close completes the bundle.
func (b *Bundle) Close() error { return b.to.close() }

// doctorPage is the name of the file with doctor's findings.
const doctorPage = "doctor.txt"

// badLines returns the bad findings on doctor's page, with their further lines and remedies,
// which are indented.
func badLines(page string) (all []string) {
	bad := false
	for line := range strings.Lines(page) {
		if !strings.HasPrefix(line, " ") {
			bad = strings.HasPrefix(line, "bad ")
		}
		if bad {
			all = append(all, strings.TrimRight(line, "\n"))
		}
	}
	return all
}
