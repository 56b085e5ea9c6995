package diag

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
)

// archive is a tar archive compressed with zstd that is being written.
type archive struct {
	tar        *tar.Writer
	compressed *zstd.Encoder
}

func newArchive(w io.Writer) (*archive, error) {
	compressed, err := zstd.NewWriter(w)
	if err != nil {
		return nil, fmt.Errorf("compress: %w", err)
	}
	return &archive{tar.NewWriter(compressed), compressed}, nil
}

// add adds a file.
func (a *archive) add(name string, body []byte) error {
	h := &tar.Header{Name: name, Mode: 0o600, Size: int64(len(body)), ModTime: time.Now(), Format: tar.FormatPAX}
	if err := a.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if _, err := a.tar.Write(body); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func (a *archive) close() error {
	if err := errors.Join(a.tar.Close(), a.compressed.Close()); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}
