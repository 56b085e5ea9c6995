package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/daemon/handover"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// flows starts a steady flow each way between pod-a and pod-b, of each family.
func (l *lab) flows() []*steadyFlow {
	l.t.Helper()
	a, b := l.pod(0), l.pod(1)
	return []*steadyFlow{
		startSteadyFlow(l.t, a, b, b.Addr), startSteadyFlow(l.t, b, a, a.Addr),
		startSteadyFlow(l.t, a, b, b.Addr6), startSteadyFlow(l.t, b, a, a.Addr6),
	}
}

// goOn waits until all flows have moved on.
func goOn(t *testing.T, flows []*steadyFlow) {
	t.Helper()
	for _, f := range flows {
		from := f.received.Load()
		testkit.Eventually(t, f.name+" goes on", func() bool { return f.received.Load() > from+200 || f.broken.Load() != nil })
		if err := f.broken.Load(); err != nil {
			t.Fatalf("%s: %v", f.name, *err)
		}
	}
}

// allArrived ends the flows, and fails the test unless each datagram has arrived,
// once and in order.
func allArrived(t *testing.T, flows []*steadyFlow) {
	t.Helper()
	for _, f := range flows {
		if err := f.stop(); err != nil {
			t.Errorf("%s: %v", f.name, err)
		}
	}
}

// takeOver starts a daemon that takes over from d, with extra flags.
func (d *daemon) takeOver(flags ...string) *daemon {
	d.t.Helper()
	next := *d
	next.stderr = new(testkit.Log)
	next.args = append(append(append([]string{}, d.args...), "--takeover"), flags...)
	next.start()
	return &next
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	twilld → twilld --takeover
func TestNewProcessTakesOverFromARunningOneWithoutALostPacket(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags []string
	}{
		{"same flags", nil},
		{"other flags", []string{"--thread-pairs=1", "--udp-gro=off", "--stranger-filter=off", "--busy-poll=off", "--log-level=debug"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := newLab(t, labOptions{})
			old := l.daemons[0]
			flows := l.flows()
			goOn(t, flows)
			next := old.takeOver(tt.flags...)
			if code := old.wait(); code != 0 {
				t.Errorf("the old process ends with exit code %d, want 0; log:\n%s", code, old.stderr)
			}
			next.waitReady()
			goOn(t, flows)
			allArrived(t, flows)
			if pid := next.status().PID; pid != next.cmd.Process.Pid {
				t.Errorf("status is that of process %d, want %d", pid, next.cmd.Process.Pid)
			}
			if got := next.stderr.String(); strings.Contains(got, "level=WARN") {
				t.Errorf("warnings of the new process:\n%s", got)
			}
			l.daemons[0] = next
			if code := next.stop(syscall.SIGTERM); code != 0 {
				t.Errorf("after SIGTERM the new process ends with exit code %d, want 0; log:\n%s", code, next.stderr)
			}
		})
	}
}

// The new version may not start at all, or only fail when it has the descriptors.
func TestRunningProcessGoesOnWhereTheNewOneFails(t *testing.T) {
	l := newLab(t, labOptions{})
	old := l.daemons[0]
	flows := l.flows()
	for _, flags := range [][]string{
		{"--no-such-flag"}, {"--lease-file=/nonexistent"}, {"--tun-offload=off"},
	} {
		goOn(t, flows)
		next := old.takeOver(flags...)
		if code := next.wait(); code == 0 {
			t.Errorf("%v: the new process ends with exit code 0", flags)
		}
		goOn(t, flows)
		if old.ended() {
			t.Fatalf("%v: the old process has ended:\n%s", flags, old.stderr)
		}
	}
	allArrived(t, flows)
	if got := old.status().PID; got != old.cmd.Process.Pid {
		t.Errorf("status is that of process %d, want %d", got, old.cmd.Process.Pid)
	}
}

// A process that takes over may hang, or wait for a store that never answers.
func TestOneProcessTakesOverAtATimeAndTheNextOneKnowsWhichDoes(t *testing.T) {
	l := newLab(t, labOptions{})
	old := l.daemons[0]
	first, err := handover.Request(old.socket)
	testkit.Must(t, err)
	defer first.Descriptors.Close()
	next := old.takeOver()
	if code := next.wait(); code != 1 || !strings.Contains(next.stderr.String(), fmt.Sprintf("pid %d) is already taking over", os.Getpid())) {
		t.Errorf("exit code %d:\n%s", code, next.stderr)
	}
	testkit.Must(t, first.Close())
	testkit.Eventually(t, "the running process logs that the handover failed", func() bool {
		return strings.Contains(old.stderr.String(), "handover failed, this process continues")
	})
	next = old.takeOver()
	if code := old.wait(); code != 0 {
		t.Errorf("exit code %d:\n%s", code, old.stderr)
	}
	next.waitReady()
	l.daemons[0] = next
}

func TestTakingOverNeedsARunningDaemon(t *testing.T) {
	l := newLab(t, labOptions{idle: true})
	d := l.daemons[0]
	d.args = append(d.args, "--takeover")
	d.start()
	if code := d.wait(); code != 1 || !strings.Contains(d.stderr.String(), "take over from the twilld on "+d.socket) {
		t.Errorf("exit code %d:\n%s", code, d.stderr)
	}
}

// keeper is a service manager that keeps what is stored with it, as systemd does.
type keeper struct {
	conn   *net.UnixConn
	stored chan map[string]*os.File // the one value is what is stored now
}

func newKeeper(t *testing.T) (k *keeper, path string) {
	t.Helper()
	path = filepath.Join(scratchDir(t), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	testkit.Must(t, err)
	k = &keeper{conn, make(chan map[string]*os.File, 1)}
	k.stored <- make(map[string]*os.File)
	ended := make(chan struct{})
	go func() { defer close(ended); k.serve() }()
	t.Cleanup(func() {
		conn.Close()
		<-ended
		for _, f := range <-k.stored {
			f.Close()
		}
	})
	return k, path
}

func (k *keeper) serve() {
	b, oob := make([]byte, 4096), make([]byte, 256)
	for {
		n, oobn, _, _, err := k.conn.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		var name, verb string
		for line := range strings.Lines(string(b[:n])) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch key {
			case "FDSTORE", "FDSTOREREMOVE":
				verb = key
			case "FDNAME":
				name = value
			}
		}
		stored := <-k.stored
		switch {
		case verb == "FDSTORE":
			messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
			for _, m := range messages {
				fds, _ := unix.ParseUnixRights(&m)
				for _, fd := range fds {
					stored[name] = os.NewFile(uintptr(fd), name)
				}
			}
		case verb == "FDSTOREREMOVE" && stored[name] != nil:
			stored[name].Close()
			delete(stored, name)
		}
		k.stored <- stored
	}
}

func (k *keeper) len() int {
	stored := <-k.stored
	defer func() { k.stored <- stored }()
	return len(stored)
}

// start starts d with what is stored, as systemd does: the shell gives it the
// process number that it must find.
func (k *keeper) start(d *daemon, path string) {
	d.t.Helper()
	stored := <-k.stored
	var files []*os.File
	var names []string
	for name, f := range stored {
		names, files = append(names, name), append(files, f)
	}
	env := []string{"NOTIFY_SOCKET=" + path, fmt.Sprintf("LISTEN_FDS=%d", len(files)), "LISTEN_FDNAMES=" + strings.Join(names, ":")}
	d.wrap = append([]string{"/usr/bin/env"}, append(env, "/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh")...)
	d.extra = files
	d.start()
	k.stored <- stored
}

// keptLab is a lab whose host a has a service manager that keeps descriptors.
func keptLab(t *testing.T) (l *lab, k *keeper, notify string) {
	t.Helper()
	l = newLab(t, labOptions{idle: true})
	k, notify = newKeeper(t)
	a, b := l.daemons[0], l.daemons[1]
	k.start(a, notify)
	b.start()
	a.waitReady()
	b.waitReady()
	testkit.Must(t, l.SetPodMTU(1472))
	testkit.Eventually(t, "descriptors are stored", func() bool { return k.len() > 0 })
	return l, k, notify
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	twilld ── descriptors ──► service manager ──► twilld
func TestRestartByAServiceManagerThatKeepsDescriptorsLosesNoPacket(t *testing.T) {
	l, k, notify := keptLab(t)
	a, kept := l.daemons[0], k.len()
	index := linkIndex(t, a.ns, "flannel0")
	flows := l.flows()
	for range 2 {
		goOn(t, flows)
		a.stop(syscall.SIGTERM)
		k.start(a, notify)
		a.waitReady()
		goOn(t, flows)
		testkit.Eventually(t, "the same descriptors are stored again", func() bool { return k.len() == kept })
	}
	allArrived(t, flows)
	if now := linkIndex(t, a.ns, "flannel0"); now != index {
		t.Errorf("flannel0 has index %d, it had %d", now, index)
	}
}

// A process that is killed loses the packets that it has read. What pods send
// afterwards, in either direction, waits for the next one.
func TestPacketsWaitWhileNoProcessRunsAfterAKill(t *testing.T) {
	l, k, notify := keptLab(t)
	a := l.daemons[0]
	index := linkIndex(t, a.ns, "flannel0")
	const datagrams = 100
	for _, way := range [][2]int{{0, 1}, {1, 0}} {
		from, to := l.pod(way[0]), l.pod(way[1])
		testkit.Must(t, acquaint(from, to.Addr))
		receiver, err := listenUDP(to.NS, netip.AddrPortFrom(to.Addr, 0))
		testkit.Must(t, err)
		defer receiver.Close()
		sender, err := dialUDP(from.NS, addrPort(receiver))
		testkit.Must(t, err)
		defer sender.Close()

		a.stop(syscall.SIGKILL)
		for i := range datagrams {
			_, err := sender.Write([]byte{byte(i)})
			testkit.Must(t, err)
		}
		k.start(a, notify)
		a.waitReady()
		testkit.Must(t, receiver.SetReadDeadline(time.Now().Add(testkit.Patience)))
		b := make([]byte, 16)
		for i := range datagrams {
			if n, err := receiver.Read(b); err != nil || n != 1 || b[0] != byte(i) {
				t.Fatalf("from %s: datagram %d of %d: % x, %v", from, i, datagrams, b[:n], err)
			}
		}
	}
	if now := linkIndex(t, a.ns, "flannel0"); now != index {
		t.Errorf("flannel0 has index %d, it had %d", now, index)
	}
}

// linkIndex returns the index of an interface.
func linkIndex(t *testing.T, ns *netlab.Namespace, name string) int {
	t.Helper()
	link, err := ns.Netlink().LinkByName(name)
	testkit.Must(t, err)
	return link.Attrs().Index
}
