package capability

import (
	"errors"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// overrides are the capabilities by which root ignores the permissions of files.
var overrides = Of(unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH)

// Files are the files that a process uses, some of which may not exist yet. Empty names
// are ignored.
type Files struct {
	Read    []string // files
	WriteIn []string // directories
}

// NeedOverride returns the first of the files that this process can use only because it
// ignores permissions (CAP_DAC_OVERRIDE), or "" if there is none.
func (f *Files) NeedOverride() string {
	result := make(chan string)
	go func() {
		// The thread gives up the capabilities and tries. It ends with the goroutine.
		runtime.LockOSThread()
		s, err := get()
		if err == nil {
			s.effective &^= overrides
			err = unix.Capset(header(), &s.data()[0])
		}
		if err != nil { // a seccomp filter: nothing can be given up
			result <- ""
			return
		}
		result <- f.refused()
	}()
	return <-result
}

// refused returns the first of the files that the calling thread may not use.
func (f *Files) refused() string {
	for _, name := range f.Read {
		if name != "" && denied(name, unix.O_RDONLY) {
			return name
		}
	}
	for _, dir := range f.WriteIn {
		if dir != "" && denied(existing(dir), unix.O_TMPFILE|unix.O_WRONLY) { // an unnamed file, where the file system supports it
			return dir
		}
	}
	return ""
}

// denied reports whether permissions alone keep the calling thread from opening the file.
func denied(name string, flags int) bool {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o600)
	if err == nil {
		_ = unix.Close(fd)
	}
	return errors.Is(err, unix.EACCES)
}

// existing returns dir, or its nearest parent that exists.
func existing(dir string) string {
	for unix.Access(dir, unix.F_OK) == unix.ENOENT && dir != filepath.Dir(dir) {
		dir = filepath.Dir(dir)
	}
	return dir
}
