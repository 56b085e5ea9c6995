package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// A twilld that may open no more files still answers on its control socket, one client
// after the other.
func TestControlSocketAnswersWithoutAFreeDescriptor(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{})
	d := l.daemons[0]
	pid := d.cmd.Process.Pid
	// Its reserved descriptor is the only other one on /dev/null.
	reserved := -1
	files := openFiles(t, pid)
	for fd, name := range files {
		if fd > 2 && name == os.DevNull {
			reserved = max(reserved, fd)
		}
	}
	if reserved < 0 {
		t.Fatalf("no descriptor is reserved: %v", files)
	}
	var was unix.Rlimit
	testkit.Must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was))
	testkit.Must(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(reserved) + 1, Max: was.Max}, nil))
	defer unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil)
	var held []net.Conn
	defer func() {
		for _, c := range held {
			c.Close()
		}
	}()
	testkit.Eventually(t, "only the reserved descriptor is left", func() bool {
		files, isReserved := openFiles(t, pid), false
		for fd := range reserved + 1 {
			name, taken := files[fd]
			if !taken {
				held = append(held, stayingClient(t, d.socket))
				return false
			}
			isReserved = isReserved || fd > 2 && name == os.DevNull
		}
		if !isReserved && len(held) > 0 { // the last client has it
			held[len(held)-1].Close()
			held = held[:len(held)-1]
		}
		return isReserved
	})
	// An attempt fails if another part of the daemon opens a file at the same moment. Clients
	// that stay are disconnected after 30 s, which is longer than it takes to fail here.
	answered, last := 0, ""
	for range 5 {
		out, err := d.ns.Command(context.Background(), built(t, "twill", "./cmd/twill"), "status", "--socket="+d.socket).CombinedOutput()
		if err != nil {
			last = string(out)
			continue
		}
		if answered++; answered == 2 {
			return
		}
	}
	t.Errorf("%d of 5 clients were answered, the others: %s", answered, last)
}

// A twilld that may open too few files to start names the limit, whatever fails first.
func TestStartWithTooFewDescriptorsNamesTheLimit(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, files := range []int{10, 13, 14, 15, 16, 17, 18, 20} {
		d := newDaemon(t, s.NS, s.leaseFile)
		// What the test has inherited, such as the pipes of make's jobserver, does not count.
		d.wrap = []string{"bash", "-c", fmt.Sprintf(`
			for fd in /proc/$BASHPID/fd/*; do
				n=${fd##*/}
				[ "$n" -le 2 ] || exec {n}>&-
			done
			ulimit -n %d && exec "$@"`, files), "bash"}
		d.start()
		testkit.Eventually(t, "it has ended", func() bool {
			select {
			case <-d.done:
				return true
			default:
				return false
			}
		})
		lines := strings.Split(strings.TrimSpace(d.stderr.String()), "\n")
		want := fmt.Sprintf("the limit of open files (RLIMIT_NOFILE) is %d: raise it with LimitNOFILE=", files)
		if last := lines[len(lines)-1]; !strings.HasPrefix(last, "twilld: ") || !strings.Contains(last, want) || d.cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("%d: exit code %d, %s", files, d.cmd.ProcessState.ExitCode(), last)
		}
	}
}

// stayingClient is a client of the control socket that was answered and stays connected.
func stayingClient(t *testing.T, socket string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	testkit.Must(t, err)
	_, err = fmt.Fprint(conn, "GET /status HTTP/1.1\r\nHost: twilld\r\n\r\n")
	testkit.Must(t, err)
	_, err = http.ReadResponse(bufio.NewReader(conn), nil)
	testkit.Must(t, err)
	return conn
}

// openFiles returns the open files of a process by their descriptors.
func openFiles(t *testing.T, pid int) map[int]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	testkit.Must(t, err)
	all := make(map[int]string)
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		testkit.Must(t, err)
		if name, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			all[fd] = name
		}
	}
	return all
}
