package handover

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// serve runs the side of the old daemon on a control socket and returns its path.
func serve(t *testing.T, handle func(*Offer)) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "twill")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "twilld.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	done := make(chan struct{})
	mux.HandleFunc("POST "+Path, func(w http.ResponseWriter, r *http.Request) {
		defer close(done)
		o, err := Accept(w, r)
		if err != nil {
			t.Error(err)
			return
		}
		handle(o)
	})
	server := &http.Server{Handler: mux}
	go server.Serve(l)
	t.Cleanup(func() { server.Close(); <-done })
	return path
}

// pipes returns n descriptors that can be read, and what is written to each: its
// name.
func pipes(t *testing.T, n int) Descriptors {
	t.Helper()
	d := make(Descriptors)
	for i := range n {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("pipe-%d", i)
		if _, err := unix.Write(p[1], []byte(name)); err != nil {
			t.Fatal(err)
		}
		unix.Close(p[1])
		d[name] = p[0]
	}
	return d
}

// check reads from each descriptor what it must give.
func check(t *testing.T, d Descriptors, n int) {
	t.Helper()
	if len(d) != n {
		t.Errorf("%d descriptors, want %d", len(d), n)
	}
	for name, fd := range d {
		b := make([]byte, 64)
		got, err := unix.Read(fd, b)
		if err != nil || string(b[:got]) != name {
			t.Errorf("descriptor %s gives %q, %v", name, b[:max(got, 0)], err)
		}
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("descriptor %s is inherited by other programs", name)
		}
	}
}

func TestDescriptorsReachTheNewProcessAndTheOldOneEndsWhenItIsReady(t *testing.T) {
	for _, n := range []int{0, 1, perMessage, 3*perMessage + 7} {
		d := pipes(t, n)
		var stopped, released atomic.Bool
		path := serve(t, func(o *Offer) {
			defer o.Close()
			if err := o.Send(d, time.Minute); err != nil {
				t.Error(err)
			}
			if err := d.Close(); err != nil { // what was sent are copies
				t.Error(err)
			}
			if err := o.Ready(); err != nil {
				t.Error(err)
			}
			stopped.Store(true)
			if err := o.Stopped(); err != nil {
				t.Error(err)
			}
			released.Store(true)
		})
		takeover, err := Request(path)
		if err != nil {
			t.Fatal(err)
		}
		check(t, takeover.Descriptors, n)
		if takeover.Watchdog != time.Minute {
			t.Errorf("watchdog after %s, want a minute", takeover.Watchdog)
		}
		if err := takeover.Ready(); err != nil {
			t.Error(err)
		}
		if !stopped.Load() {
			t.Error("Ready returned before the old process has stopped")
		}
		if err := takeover.Ended(time.Minute); err != nil {
			t.Error(err)
		}
		if !released.Load() {
			t.Error("Ended returned before the old process has ended")
		}
		takeover.Descriptors.Close()
		takeover.Close()
	}
}

func TestOldProcessGoesOnWhereTheNewOneFails(t *testing.T) {
	result := make(chan error, 1)
	path := serve(t, func(o *Offer) {
		defer o.Close()
		if err := o.Send(nil, 0); err != nil {
			t.Error(err)
		}
		result <- o.Ready()
	})
	takeover, err := Request(path)
	if err != nil {
		t.Fatal(err)
	}
	takeover.Close() // as when it is killed
	if err := <-result; err == nil {
		t.Error("the old process takes it for ready")
	}
}

func TestDaemonThatKnowsNoHandoverIsNamed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.NotFoundHandler()}
	go server.Serve(l)
	defer server.Close()
	if _, err := Request(path); err == nil || !strings.Contains(err.Error(), "older version") {
		t.Errorf("%v", err)
	}
	if _, err := Request(path + "-none"); err == nil {
		t.Error("no daemon, and no error")
	}
}

// The other process of this test is this binary, as systemd would start it.
func TestDescriptorsOfTheServiceManagerHaveTheirNames(t *testing.T) {
	const variable = "TWILL_INHERIT"
	if os.Getenv(variable) != "" {
		environment := map[string]string{
			"LISTEN_PID": fmt.Sprint(os.Getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "pipe-0:pipe-1:pipe-2",
		}
		d, err := Inherit(func(name string) string { return environment[name] }, os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		check(t, d, 3)
		return
	}
	d := pipes(t, 3)
	cmd := exec.Command(os.Args[0], "-test.run=^TestDescriptorsOfTheServiceManagerHaveTheirNames$")
	cmd.Env = append(os.Environ(), variable+"=1")
	for _, name := range d.Names() {
		cmd.ExtraFiles = append(cmd.ExtraFiles, os.NewFile(uintptr(d[name]), name))
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestDescriptorsForAnotherProcessAreLeftAlone(t *testing.T) {
	for _, environment := range []map[string]string{
		{}, {"LISTEN_PID": "1", "LISTEN_FDS": "3"}, {"LISTEN_FDS": "3"},
	} {
		if d, err := Inherit(func(name string) string { return environment[name] }, os.Getpid()); err != nil || len(d) != 0 {
			t.Errorf("%v: %v, %v", environment, d, err)
		}
	}
	self := fmt.Sprint(os.Getpid())
	for _, n := range []string{"", "-1", "many", "100000"} {
		environment := map[string]string{"LISTEN_PID": self, "LISTEN_FDS": n}
		if _, err := Inherit(func(name string) string { return environment[name] }, os.Getpid()); err == nil {
			t.Errorf("LISTEN_FDS=%q is accepted", n)
		}
	}
}

func TestServiceManagerGetsEachDescriptorWithItsName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	d := pipes(t, 2)
	if err := Store(path, d); err != nil {
		t.Fatal(err)
	}
	if err := Forget(path, d.Names()); err != nil {
		t.Fatal(err)
	}
	var states []string
	stored := make(Descriptors)
	for range 4 {
		b, oob := make([]byte, 256), make([]byte, 256)
		n, oobn, _, _, err := manager.ReadMsgUnix(b, oob)
		if err != nil {
			t.Fatal(err)
		}
		states = append(states, string(b[:n]))
		fds, err := parseRights(oob[:oobn])
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			stored[strings.TrimPrefix(string(b[:n]), "FDSTORE=1\nFDNAME=")] = fd
		}
	}
	want := []string{"FDSTORE=1\nFDNAME=pipe-0", "FDSTORE=1\nFDNAME=pipe-1", "FDSTOREREMOVE=1\nFDNAME=pipe-0", "FDSTOREREMOVE=1\nFDNAME=pipe-1"}
	if !slices.Equal(states, want) {
		t.Errorf("%q, want %q", states, want)
	}
	check(t, stored, 2)
	if err := Store("", d); err != nil {
		t.Errorf("without a service manager: %v", err)
	}
}

// The scheduler of Go interrupts threads with signals.
func TestSignalWhileTheServiceManagerIsBusyLosesNoDescriptor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	testkit.Must(t, err)
	defer manager.Close()
	text, err := os.ReadFile("/proc/sys/net/unix/max_dgram_qlen")
	testkit.Must(t, err)
	queue, err := strconv.Atoi(strings.TrimSpace(string(text)))
	testkit.Must(t, err)
	names := make([]string, queue+8) // more than wait in the manager's socket
	for i := range names {
		names[i] = fmt.Sprintf("pipe-%d", i)
	}

	thread, result := make(chan int, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // until the goroutine ends
		thread <- unix.Gettid()
		result <- Forget(path, names)
	}()
	tid := <-thread
	testkit.Eventually(t, "Forget waits for the manager", func() bool {
		status, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", tid))
		return err == nil && strings.Contains(string(status), "State:\tS")
	})
	testkit.Must(t, unix.Tgkill(os.Getpid(), tid, unix.SIGURG))
	for b := make([]byte, 256); ; {
		select {
		case err := <-result:
			if errors.Is(err, unix.EINTR) {
				t.Error(err)
			}
			return
		default:
		}
		testkit.Must(t, manager.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
		_, _ = manager.Read(b)
	}
}
