package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What stands in the place of a file neither blocks its reader nor takes all memory.
func TestReadTakesOnlyFilesOfTheSizeThatIsExpected(t *testing.T) {
	dir := t.TempDir()
	file, pipe, endless := filepath.Join(dir, "file"), filepath.Join(dir, "pipe"), filepath.Join(dir, "endless")
	for _, err := range []error{os.WriteFile(file, []byte("content"), 0o600), unix.Mkfifo(pipe, 0o600), os.WriteFile(endless, nil, 0o600), os.Truncate(endless, 1<<40)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(file, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name  string
		flags int
		most  int64
		want  error
	}{
		{"file", 0, 7, nil},
		{"link", 0, 7, nil},
		{"link", unix.O_NOFOLLOW, 7, unix.ELOOP},
		{"file", 0, 6, ErrTooLarge},
		{"endless", 0, 1000, ErrTooLarge},
		{"pipe", 0, 7, ErrNotRegular},
		{".", 0, 7, ErrNotRegular},
		{"absent", 0, 7, fs.ErrNotExist},
	} {
		text, err := Read(filepath.Join(dir, tt.name), tt.flags, tt.most)
		if !errors.Is(err, tt.want) || tt.want == nil && string(text) != "content" || tt.want != nil && text != nil {
			t.Errorf("%s, at most %d bytes: %q, %v; want the error %v", tt.name, tt.most, text, err, tt.want)
		}
	}
}
