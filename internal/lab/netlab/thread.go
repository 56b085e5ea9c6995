package netlab

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on an operating system thread of its own and returns when f
// is done. The thread ends with f, because f may leave it in any namespace.
func onThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: a goroutine that ends locked terminates its thread.
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The main thread cannot end, and /proc/self describes it.
			// Keep it busy while another thread does the work.
			onThread(f)
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

// errGoexit is the error if a function passed to [Namespace.Do] ends
// its goroutine, for example with t.FailNow.
var errGoexit = errors.New("the function ended its goroutine instead of returning")

// errOnThread is onThread for functions that can fail.
func errOnThread(f func() error) error {
	err := errGoexit
	onThread(func() { err = f() })
	return err
}
