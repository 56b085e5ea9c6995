package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultSocket is where twilld listens and twill asks unless told otherwise.
const DefaultSocket = "/run/flannel/twilld.sock"

// maxSocketPath is the size of sun_path without its final zero byte, unix(7).
const maxSocketPath = 107

// Server answers GET /status on a unix socket. The socket is also what keeps
// a second daemon from starting with the same one.
type Server struct {
	http *http.Server
	done chan struct{}
}

// Listen makes the socket at path, which only its owner may connect to, and
// answers there with what document returns until Close. document is called
// from several goroutines.
//
// A socket that a dead daemon left is replaced. It is an error, which names
// the process, if somebody listens on it.
func Listen(path string, document func() Document) (*Server, error) {
	l, err := listen(path)
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w; run twilld as root, or choose another path with --control-socket", err)
	}
	if err != nil {
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		_ = enc.Encode(document()) // fails only if the client has gone
	})
	s := &Server{
		http: &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second},
		done: make(chan struct{}),
	}
	go func() {
		defer close(s.done)
		_ = s.http.Serve(l) // ends by Close
	}()
	return s, nil
}

// Close removes the socket and ends requests under way.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}

// listen binds path. Finding out that a socket is stale, removing it and
// binding a new one are three steps; the directory is locked over them, so
// that of two daemons which start at once one sees the other.
func listen(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("the path has %d bytes, the kernel takes %d; choose a shorter one with --control-socket", len(path), maxSocketPath)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer dir.Close() // gives the lock back
	if err := flock(dir); err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir.Name(), err)
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: ownerOnly}
	return lc.Listen(context.Background(), "unix", path)
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// ownerOnly takes the permissions of the others off a socket before it is
// bound: bind(2) gives the file the mode of the socket's inode (net/unix
// af_unix.c, unix_bind_bsd), so there is no moment when it is open to them.
func ownerOnly(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }); cerr != nil {
		return cerr
	}
	return os.NewSyscallError("fchmod", err)
}

// dyingFor is how long the socket of a process that was killed may still be open: a
// program that it was about to start has it until it runs (vfork(2)).
const dyingFor = 2 * time.Second

// removeStale removes a socket on which nobody listens.
func removeStale(path string) error {
	for deadline := time.Now().Add(dyingFor); ; time.Sleep(dyingFor / 200) {
		pid, err := tryRemove(path)
		dead := pid > 0 && errors.Is(unix.Kill(pid, 0), unix.ESRCH)
		if !dead || time.Now().After(deadline) {
			return err
		}
	}
}

// tryRemove is one attempt of removeStale. pid is that of the process that listens,
// 0 if none does or it is in another PID namespace.
func tryRemove(path string) (pid int, err error) {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	if fi.Mode().Type() != fs.ModeSocket {
		return 0, errors.New("exists and is not a socket; remove it or choose another path with --control-socket")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		defer conn.Close()
		pid, who := listenerPID(conn), ""
		if pid > 0 {
			who = fmt.Sprintf(" (pid %d)", pid)
		}
		return pid, fmt.Errorf("another twilld is running%s; stop it first, or give this one its own --control-socket, --tun-name, --subnet-file and port", who)
	case errors.Is(err, unix.ECONNREFUSED):
		return 0, os.Remove(path)
	case errors.Is(err, unix.ENOENT): // it was just closed
		return 0, nil
	default:
		return 0, err
	}
}

// listenerPID returns the process that listens at the other end, 0 if it lives in
// another PID namespace.
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
