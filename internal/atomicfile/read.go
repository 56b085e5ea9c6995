package atomicfile

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// Errors of Read for what stands in the place of a file.
var (
	ErrNotRegular = errors.New("not a regular file") // a directory, a device or a pipe
	ErrTooLarge   = errors.New("too large")
)

// Read returns the content of the file at path, which has at most the given number of
// bytes. A pipe in its place does not block, and a file without an end does not take all
// memory. flags are those of open(2) besides O_RDONLY, such as O_NOFOLLOW. The errors are
// *fs.PathError.
func Read(path string, flags int, most int64) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|flags, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: ErrNotRegular}
	}
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(text)) > most {
		err = &fs.PathError{Op: "read", Path: path, Err: fmt.Errorf("%w: more than %d bytes", ErrTooLarge, most)}
	}
	if err != nil {
		return nil, err
	}
	return text, nil
}
