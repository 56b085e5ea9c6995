package status

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the size of sun_path without its final zero byte, unix(7).
const maxSocketPath = 107

// Timeouts for the process that holds the socket or its directory:
const (
	// dyingFor is the timeout for a process that was killed, or is stopping. The files
	// of a killed process are closed only after its memory is freed, and a child process
	// holds copies of them until it executes its program (vfork(2)).
	dyingFor = 10 * time.Second
	// signalledFor is how long a process may take to react to a signal to stop.
	signalledFor = 200 * time.Millisecond
	// answerWithin is the timeout for a live process to answer a request.
	answerWithin = 2 * time.Second
	// lockedFor is the timeout for another process that is binding the same socket,
	// which may itself be waiting for a dying one.
	lockedFor = dyingFor + answerWithin
	pollEvery = 10 * time.Millisecond
)

// listen binds path. Finding out that a socket is stale, removing it and binding a new
// one are three steps; a lock is held during all three, so that if two daemons start at
// the same time, one detects the other.
func listen(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the path has %d bytes, but the kernel accepts at most %d; choose a shorter one with --socket", len(path), maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	held, err := lock(path + ".lock")
	if err != nil {
		return nil, err
	}
	defer held.Close() // releases the lock
	defer os.Remove(held.Name())
	if err := awaitFree(path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: ownerOnly}
	return lc.Listen(context.Background(), "unix", path)
}

// lock takes an exclusive lock within lockedFor, on a file that it creates and that
// the holder removes before it releases the lock. Only the owner can open the file:
// flock(2) lets everyone who can open a file, even just for reading, lock it, so any user
// of the host could hold a lock on the socket's directory.
func lock(path string) (*os.File, error) {
	for deadline := time.Now().Add(lockedFor); ; time.Sleep(pollEvery) {
		f, err := tryLock(path)
		switch {
		case err == nil:
			return f, nil
		case !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, fmt.Errorf("lock %s: %w", path, err)
		case time.Now().After(deadline):
			return nil, fmt.Errorf("lock %s: another process has held it for %v: find it with \"fuser %s\"", path, lockedFor, path)
		}
	}
}

// tryLock locks the file at path. EWOULDBLOCK means that another process holds the lock,
// or has removed the file since it was opened here.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil && !isFile(path, f) {
		err = unix.EWOULDBLOCK
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// isFile reports whether path is the name of f.
func isFile(path string, f *os.File) bool {
	here, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(here, there)
}

// ownerOnly removes the permissions of other users from a socket before it is
// bound: bind(2) gives the file the mode of the socket's inode (net/unix
// af_unix.c, unix_bind_bsd), so it is never open to them.
func ownerOnly(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
		return cerr
	}
	return os.NewSyscallError("fchmod", err)
}

// awaitFree returns once no process listens at path and no socket is left there.
// It waits for a process that is dying; a live one is an error.
func awaitFree(path string) error {
	start := time.Now()
	for {
		h, err := removeStale(path)
		if h == nil || err != nil {
			return err
		}
		waited := time.Since(start)
		switch dying := h.stopping || h.dying(); {
		case h.answers && !h.stopping && waited > signalledFor:
			return fmt.Errorf("another twilld is running%s; stop it first, or give this one its own --socket, --tun-name, --subnet-file and port", h)
		case dying && waited > dyingFor:
			return fmt.Errorf("the twilld that is stopping%s did not release it within %v; wait until \"fuser %s\" shows no process", h, dyingFor, path)
		case !dying && !h.answers && waited > answerWithin:
			return fmt.Errorf("the process that holds it%s did not answer within %v; if it is a twilld that hangs, stop it with kill -9", h, answerWithin)
		}
		time.Sleep(pollEvery)
	}
}

// holder is the process that listens on a socket.
type holder struct {
	pid      int // 0 if in another PID namespace
	answers  bool
	stopping bool // its status reports that it is stopping
}

// String describes the process, for the end of a message.
func (h *holder) String() string {
	if h.pid == 0 {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", h.pid)
}

// dying reports whether the process has ended or is ending, so that the kernel
// will close its socket.
func (h *holder) dying() bool { return h.pid != 0 && dying(h.pid) }

// removeStale removes the socket at path if no process listens on it; otherwise
// it returns the process that does.
func removeStale(path string) (*holder, error) {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return nil, errors.New("exists and is not a socket; remove it or choose another path with --socket")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		defer conn.Close()
		h := &holder{pid: listenerPID(conn)}
		h.answers, h.stopping = ask(conn)
		return h, nil
	case errors.Is(err, unix.ECONNREFUSED):
		return nil, os.Remove(path)
	case errors.Is(err, unix.ENOENT): // it was just closed
		return nil, nil
	case errors.Is(err, unix.EAGAIN): // its backlog is full
		return &holder{}, nil
	}
	return nil, err
}

// ask requests the status of the process at the other end. It reports whether the process
// answers, and whether it is stopping.
func ask(conn net.Conn) (answers, stopping bool) {
	if conn.SetDeadline(time.Now().Add(answerWithin/4)) != nil {
		return false, false
	}
	if _, err := io.WriteString(conn, "GET /status HTTP/1.0\r\n\r\n"); err != nil {
		return false, false
	}
	r := bufio.NewReader(conn)
	if _, err := r.Peek(1); err != nil {
		return false, false
	}
	answer, err := http.ReadResponse(r, nil)
	if err != nil {
		return true, false
	}
	defer answer.Body.Close()
	var d Document
	err = json.NewDecoder(answer.Body).Decode(&d)
	return true, err == nil && d.Stopping
}

// listenerPID returns the PID of the process that listens at the other end, or 0
// if it is in another PID namespace.
func listenerPID(c net.Conn) int {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil || err != nil {
		return 0
	}
	return int(cred.Pid)
}
