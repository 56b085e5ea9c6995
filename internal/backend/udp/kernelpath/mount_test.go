//go:build !nobpf

package kernelpath

import (
	"errors"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

// Where the BPF file system is not mounted, everyone may open, and so lock, its directory.
func TestLockThatAnyUserCanHoldDoesNotKeepTheFileSystemFromBeingMounted(t *testing.T) {
	netlabtest.Root(t)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread, with its mounts, ends with the goroutine
		failed <- mountBesideALock()
	}()
	select {
	case err := <-failed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Error("waits for the lock without end")
	}
}

// mountBesideALock mounts the BPF file system, in a mount namespace of the calling thread
// that has none, while the directory is locked.
func mountBesideALock() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for isBPF() {
		if err := unix.Unmount(bpfRoot, unix.MNT_DETACH); err != nil {
			return err
		}
	}
	fd, err := unix.Open(bpfRoot, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// Another run of this test may have it, which is as good.
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return err
	}
	if err := mountBPF(); err != nil {
		return err
	}
	if !isBPF() {
		return unix.ENODEV
	}
	return nil
}
