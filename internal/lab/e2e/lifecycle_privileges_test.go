package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// bits returns a set of capabilities as in /proc/PID/status.
func bits(capabilities ...int) string {
	set := uint64(0)
	for _, c := range capabilities {
		set |= 1 << c
	}
	return fmt.Sprintf("%016x", set)
}

// privileges returns these fields of /proc/PID/status, of all threads of the daemon that
// differ.
func (d *daemon) privileges(fields ...string) string {
	d.t.Helper()
	pid := d.cmd.Process.Pid
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	testkit.Must(d.t, err)
	var all []string
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		var values []string
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(line, ":")
			for _, f := range fields {
				if name == f {
					values = append(values, name+" "+strings.TrimSpace(value))
				}
			}
		}
		all = append(all, strings.Join(values, ", "))
	}
	slices.Sort(all)
	return strings.Join(slices.Compact(all), "; ")
}

// expectPrivileges waits until the daemon has these capabilities, and none of its threads
// or programs can have others.
func (d *daemon) expectPrivileges(capabilities ...int) {
	d.t.Helper()
	set, now := bits(capabilities...), ""
	want := fmt.Sprintf("CapInh 0000000000000000, CapPrm %s, CapEff %s, CapAmb 0000000000000000, NoNewPrivs 1", set, set)
	testkit.Eventually(d.t, "twilld in "+d.ns.String()+" has "+want, func() bool {
		now = d.privileges("CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs")
		return now == want
	}, func() string { return "it has " + now + "\n" + d.stderr.String() })
}

// pod-a ── host a ──────────── host b ── pod-b
func TestDaemonOfRootKeepsTheCapabilitiesThatItNeeds(t *testing.T) {
	t.Parallel()
	few := []int{unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_ADMIN}
	raw := append(few[:2:2], unix.CAP_NET_RAW)
	l := newLab(t, labOptions{})
	a := l.daemons[0]
	l.load(l.pod(1).Addr)
	goesOn := func() {
		t.Helper()
		from := l.txPackets(0)
		testkit.Eventually(t, "traffic continues", func() bool { return l.txPackets(0) > from+1000 || l.txPackets(0) < from })
		testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, 1472), ping(l.pod(0), l.pod(1).Addr6, 1472))
	}
	a.expectPrivileges(raw...)
	if got := a.status().Privileges; got == nil || !got.NoNewPrivileges || strings.Join(got.Capabilities, " ") != "NET_BIND_SERVICE NET_ADMIN NET_RAW" {
		t.Errorf("status has %+v", got)
	}

	// The data plane is opened again, with new threads.
	index := linkIndex(t, a.ns, "flannel0")
	deleteLink(t, a.ns, "flannel0")
	testkit.Eventually(t, "flannel0 is created again", func() bool {
		link, err := a.ns.Netlink().LinkByName("flannel0")
		return err == nil && link.Attrs().Index != index
	})
	goesOn()
	a.expectPrivileges(raw...)

	// A process that takes over decides by its own flags.
	for _, next := range []struct {
		flag string
		want []int
	}{{"--mtu-probes=off", few}, {"--mtu-probes=auto", raw}} {
		b := a.takeOver(next.flag)
		a.wait()
		b.waitReady()
		goesOn()
		b.expectPrivileges(next.want...)
		a = b
	}
	if got := a.stderr.String(); strings.Contains(got, "level=WARN") {
		t.Errorf("warnings:\n%s", got)
	}
}

// deleteLink deletes an interface.
func deleteLink(t *testing.T, ns *netlab.Namespace, name string) {
	t.Helper()
	link, err := ns.Netlink().LinkByName(name)
	testkit.Must(t, err, ns.Netlink().LinkDel(link))
}

// host a
func TestWhichCapabilitiesAreKeptFollowsFromTheSettings(t *testing.T) {
	t.Parallel()
	admin := []int{unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_ADMIN}
	for _, tt := range []struct {
		name    string
		flags   []string
		prepare func(t *testing.T, s *site, d *daemon)
		want    []int
	}{
		{"iptables", []string{"--mtu-probes=off", "--iptables-forward-rules"}, nil, append(admin[:2:2], unix.CAP_NET_RAW)},
		{"no raw sockets", []string{"--mtu-probes=off"}, nil, admin},
		{"files of another user", []string{"--mtu-probes=off"}, func(t *testing.T, s *site, _ *daemon) {
			testkit.Must(t, os.Chmod(s.leaseFile, 0o600), os.Chown(s.leaseFile, unprivileged, unprivileged))
		}, append(admin[:2:2], unix.CAP_DAC_OVERRIDE, unix.CAP_DAC_READ_SEARCH)},
		{"no device node", []string{"--mtu-probes=off", "--backend=host-gw"}, func(_ *testing.T, _ *site, d *daemon) {
			d.wrap = []string{"unshare", "--mount", "sh", "-ec", `mount -t tmpfs none /dev/net; exec "$@"`, "sh"}
		}, append(admin[:2:2], unix.CAP_MKNOD)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			d := newDaemon(t, s.NS, s.leaseFile, tt.flags...)
			if tt.prepare != nil {
				tt.prepare(t, s, d)
			}
			d.start()
			d.waitReady()
			d.expectPrivileges(tt.want...)
		})
	}
	t.Run("switched off", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		d := startDaemon(t, s.NS, s.leaseFile, "--drop-privileges=false")
		status, err := os.ReadFile("/proc/self/status")
		testkit.Must(t, err)
		if got := d.privileges("CapEff"); !strings.Contains(string(status), strings.Replace(got, " ", ":\t", 1)) {
			t.Errorf("twilld has %s, the test\n%s", got, status)
		}
	})
	t.Run("ambient capabilities of a user", func(t *testing.T) {
		t.Parallel()
		s := newSite(t)
		d := newDaemon(t, s.NS, s.leaseFile)
		testkit.Must(t, os.Chmod(filepath.Dir(s.leaseFile), 0o755), os.Chown(filepath.Dir(d.subnetFile), unprivileged, unprivileged))
		d.wrap = withoutRoot(t, "+net_admin", "+sys_time", "+sys_admin")
		d.start()
		d.waitReady()
		const admin = "0000000000001000"
		want := fmt.Sprintf("CapInh %s, CapPrm %[1]s, CapEff %[1]s, CapAmb %[1]s, NoNewPrivs 1", admin)
		if got := d.privileges("CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs"); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
}

// Root's programs would have all capabilities.
//
// host a: twilld → iptables
func TestProgramsOfTheDaemonHaveNoMoreThanItself(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir := scratchDir(t)
	seen := filepath.Join(dir, "seen")
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "iptables"), []byte("#!/bin/sh\ngrep CapEff /proc/self/status >>"+seen+
		"\nexec /usr/sbin/iptables \"$@\"\n"), 0o755))
	d := newDaemon(t, s.NS, s.leaseFile, "--iptables-forward-rules", "--iptables-resync=1")
	d.wrap = []string{"env", "PATH=" + dir + ":" + os.Getenv("PATH")}
	d.start()
	d.waitReady()
	want := "CapEff:\t" + bits(unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW) + "\n"
	testkit.Eventually(t, "iptables runs without other capabilities", func() bool {
		text, err := os.ReadFile(seen)
		return err == nil && strings.HasSuffix(string(text), want)
	}, func() string {
		text, _ := os.ReadFile(seen)
		return string(text)
	})
}

// What a changed network configuration needs is still there.
//
// host a: host-gw → udp, in a container without /dev/net/tun
func TestAChangedConfigurationFindsTheCapabilitiesThatItNeeds(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	write := func(backend string) {
		testkit.Must(t, os.WriteFile(s.leaseFile+".new", []byte(strings.Replace(soundLeases, `"udp"`, strconv.Quote(backend), 1)), 0o644),
			os.Rename(s.leaseFile+".new", s.leaseFile))
	}
	write("host-gw")
	d := newDaemon(t, s.NS, s.leaseFile)
	d.wrap = []string{"unshare", "--mount", "sh", "-ec", `mount -t tmpfs none /dev/net; exec "$@"`, "sh"}
	d.start()
	d.waitReady()
	write("udp")
	testkit.Eventually(t, "flannel0 is created", func() bool {
		_, err := s.NS.Netlink().LinkByName("flannel0")
		return err == nil
	}, d.stderr.String)
	testkit.Eventually(t, "twilld is ready", func() bool { return d.status().Waiting == "" })
}

// host a
func TestKernelPathNeedsNoSystemAdministrationOnceItIsOpen(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	d := newDaemon(t, s.NS, s.leaseFile, kernelFlags...)
	t.Cleanup(func() { d.cleanUp() })
	capabilities := []int{unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW, unix.CAP_PERFMON, unix.CAP_BPF}
	inForce := func() bool {
		for _, o := range d.status().Dataplane.Offloads {
			if o.Name == "kernel-path" {
				return o.InForce
			}
		}
		return false
	}
	d.start()
	d.waitReady()
	d.expectPrivileges(capabilities...)
	index := linkIndex(t, d.ns, "flannel0")
	deleteLink(t, d.ns, "flannel0")
	testkit.Eventually(t, "the kernel path is open again", func() bool {
		link, err := d.ns.Netlink().LinkByName("flannel0")
		return err == nil && link.Attrs().Index != index && d.status().Dataplane != nil && inForce()
	}, d.stderr.String)
	d.expectPrivileges(capabilities...)
	d.stop(syscall.SIGTERM)
}
