package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// embeddedLab is an etcdLab whose etcd runs in the daemon of host a, with flags.
// Nothing is started, and host b looks for the etcd without TLS: see invite.
func embeddedLab(t *testing.T, flags ...string) *etcdLab {
	t.Helper()
	l := &etcdLab{lab: newLab(t, labOptions{Options: netlab.Options{Hosts: 2}, idle: true}), port: "2379"}
	l.host = l.Hosts[0]
	for i, d := range l.daemons {
		d.args = slices.DeleteFunc(d.args, func(a string) bool { return strings.HasPrefix(a, "--lease-file=") })
		if i == 0 {
			d.args = append(append(d.args, "--embedded-etcd="+filepath.Join(scratchDir(t), "etcd")), flags...)
		} else {
			d.args = append(d.args, fmt.Sprintf("--etcd-endpoints=http://%s:%s", l.host.Addr, l.port))
		}
	}
	return l
}

// configure starts the daemon with the etcd, and writes the leases of the pods'
// subnets and the network configuration that it waits for.
func (l *etcdLab) configure() {
	l.t.Helper()
	d := l.daemons[0]
	d.start()
	testkit.Eventually(l.t, "the log says how to write the configuration", func() bool {
		return strings.Contains(d.stderr.String(), "twill config set")
	})
	for i := range l.daemons {
		granted := strings.Fields(l.etcdctl("lease", "grant", "3600"))
		l.etcdctl("put", "--lease="+granted[1], l.key(i), fmt.Sprintf(`{"PublicIP":"%s","PublicIPv6":null}`, l.Hosts[i].Addr))
	}
	l.etcdctl("put", "/coreos.com/network/config", `{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}`)
	d.waitReady()
}

// invite lets host b join the etcd of host a, whose daemon runs, as an operator
// does.
func (l *etcdLab) invite() {
	l.t.Helper()
	testkit.Must(l.t, build("twill", "./cmd/twill"))
	a, b := l.daemons[0], l.daemons[1]
	dir := scratchDir(l.t)
	invitation, err := a.ns.Command(l.t.Context(), bin("twill"), "invite", "--dir="+filepath.Join(embeddedDir(a), "tls")).Output()
	testkit.Must(l.t, err, os.WriteFile(dir+"/invitation", invitation, 0o600))
	out, err := b.ns.Command(l.t.Context(), bin("twill"), "join", "--dir="+dir+"/etcd", dir+"/invitation").CombinedOutput()
	if err != nil {
		l.t.Fatalf("twill join: %v\n%s", err, out)
	}
	b.args = slices.DeleteFunc(b.args, func(a string) bool { return strings.HasPrefix(a, "--etcd-endpoints=") })
	for _, word := range strings.Fields(string(out)) { // the command that it prints
		if strings.HasPrefix(word, "--etcd-") {
			b.args = append(b.args, word)
		}
	}
}

// embeddedDir is the directory of the etcd in d.
func embeddedDir(d *daemon) (dir string) {
	for _, a := range d.args {
		if after, ok := strings.CutPrefix(a, "--embedded-etcd="); ok {
			dir = after
		}
	}
	return dir
}

// remember reads the subnet.env of d and the leases in etcd. The function that it
// returns checks that both are the same again, and that pods talk.
func (l *etcdLab) remember(d *daemon) (expectKept func()) {
	l.t.Helper()
	leases := func() string { return l.etcdctl("get", "--prefix", "/coreos.com/network/subnets/") }
	env, before := d.env(), leases()
	return func() {
		l.t.Helper()
		if got := d.env(); got != env {
			l.t.Errorf("subnet.env was\n%s\nand is\n%s", env, got)
		}
		if got := leases(); got != before {
			l.t.Errorf("the leases were\n%s\nand are\n%s", before, got)
		}
		testkit.Must(l.t, ping(l.pod(0), l.pod(1).Addr, 1472))
	}
}

// reaches dials the etcd of host a from host number i.
func (l *etcdLab) reaches(i int) error {
	return l.Hosts[i].NS.Do(func() error {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(l.host.Addr.String(), l.port), time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	etcd in twilld
func TestEtcdInTwilldServesAnotherNodeAndKeepsLeases(t *testing.T) {
	t.Parallel()
	l := embeddedLab(t)
	a, b := l.daemons[0], l.daemons[1]
	a.args = append(a.args, "--embedded-etcd-listen="+l.Hosts[0].Addr.String())
	l.configure()
	l.invite()
	b.start()
	b.waitReady()
	testkit.Must(t, l.SetPodMTU(1472), ping(l.pod(0), l.pod(1).Addr, 1472), ping(l.pod(1), l.pod(0).Addr, 1472))

	expectKept := l.remember(a)
	if code := a.stop(syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	a.start()
	a.waitReady()
	expectKept()

	// The other node follows the etcd that is back.
	l.etcdctl("put", "/coreos.com/network/subnets/10.5.77.0-24", `{"PublicIP":"172.31.9.77","PublicIPv6":null}`)
	testkit.Eventually(t, "the other node has the new lease", func() bool { return b.status().Source.Leases == 3 })
}

func TestEtcdInTwilldRefusesNodesThatWereNotInvited(t *testing.T) {
	t.Parallel()
	l := embeddedLab(t)
	l.daemons[0].args = append(l.daemons[0].args, "--embedded-etcd-listen="+l.Hosts[0].Addr.String())
	l.configure()
	if err := l.reaches(1); err != nil {
		t.Fatalf("nothing listens: %v", err)
	}
	path, err := etcdtest.Binary("etcdctl")
	testkit.Must(t, err)
	for _, flags := range [][]string{
		{"--endpoints=http://" + l.host.Addr.String() + ":" + l.port},
		{"--endpoints=https://" + l.host.Addr.String() + ":" + l.port, "--insecure-skip-tls-verify"},
	} {
		args := append([]string{"--command-timeout=5s", "--dial-timeout=5s", "get", "--prefix", "/"}, flags...)
		if out, err := l.Hosts[1].NS.Command(t.Context(), path, args...).CombinedOutput(); err == nil {
			t.Errorf("etcdctl %v: %s", flags, out)
		}
	}
}

// descriptors counts the open file descriptors of the process.
func (d *daemon) descriptors() int {
	d.t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
	testkit.Must(d.t, err)
	return len(fds)
}

// A host without a certificate can neither make the daemon hold its connections nor
// keep nodes away, nor fill the log.
//
//	2,000 connections, 172.31.9.112 ──┐
//	                                  ├── host a, etcd in twilld
//	host b, invited, 172.31.9.12 ─────┘
func TestIdleConnectionsToTheEtcdInTwilldAreBounded(t *testing.T) {
	t.Parallel()
	l := embeddedLab(t)
	a, b := l.daemons[0], l.daemons[1]
	a.args = append(a.args, "--embedded-etcd-listen="+l.Hosts[0].Addr.String())
	l.configure()
	l.invite()
	second := netip.MustParsePrefix("172.31.9.112/24")
	addAddr(t, l.Hosts[1].NS, netlab.UnderlayLink, second)
	before := a.descriptors()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: second.Addr().AsSlice()}, Timeout: testkit.Patience}
	testkit.Must(t, l.Hosts[1].NS.Do(func() error {
		for i := range 2000 {
			if n := a.descriptors(); i%100 == 0 && n > before+100 {
				t.Errorf("%d descriptors are open after %d connections, %d before", n, i, before)
			}
			c, err := dialer.Dial("tcp", net.JoinHostPort(l.host.Addr.String(), l.port))
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
		}
		return nil
	}))
	b.start()
	b.waitReady()
	testkit.Must(t, l.SetPodMTU(1472), ping(l.pod(0), l.pod(1).Addr, 100))
	if lines := strings.Count(a.stderr.String(), "\n"); lines > 100 {
		t.Errorf("the log has %d lines:\n%s", lines, a.stderr)
	}
}

func TestEtcdInTwilldAnswersOnTheLoopbackAlone(t *testing.T) {
	t.Parallel()
	l := embeddedLab(t)
	l.configure()
	for i := range l.Hosts {
		if err := l.reaches(i); err == nil {
			t.Errorf("host %d reaches it at %s", i, l.host.Addr)
		}
	}
}
