package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// machine is a systemd that a test has booted on a host, with twilld.service
// installed and not started.
type machine struct {
	t      testing.TB
	ns     *netlab.Namespace
	init   string // its process, as this process sees it
	logged *testkit.Log
	groups string // directory of its control group
}

// boot boots a machine. settings are the lines of /etc/twill/twilld.env.
func boot(t testing.TB, ns *netlab.Namespace, settings ...string) *machine {
	t.Helper()
	dir := scratchDir(t)
	m := &machine{t: t, ns: ns, logged: new(testkit.Log), groups: filepath.Join(unifiedGroups(t), filepath.Base(dir))}
	environment := filepath.Join(dir, "twilld.env")
	root := filepath.Join(dir, "root")
	testkit.Must(t, os.WriteFile(environment, []byte(strings.Join(settings, "\n")+"\n"), 0o644), os.Mkdir(root, 0o755), os.Mkdir(m.groups, 0o755))
	t.Cleanup(m.removeGroups)
	cmd := ns.Command(context.Background(), "sh", "-c",
		`echo $$ >$0/cgroup.procs && exec unshare --mount --pid --cgroup --ipc --uts --fork --kill-child sh testdata/systemd.sh "$@"`,
		m.groups, root, bin("twilld"), filepath.Join("..", "..", "..", "deploy", "systemd", "twilld.service"), environment)
	cmd.Stdout, cmd.Stderr = m.logged, m.logged
	testkit.Must(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := m.command("journalctl", "--no-pager").CombinedOutput()
			status, _ := m.command("systemctl", "status", "--no-pager", "--lines=0", "twilld").CombinedOutput()
			t.Logf("systemd in %s:\n%s\njournal:\n%s\nservice:\n%s", ns, m.logged, out, status)
		}
		_ = cmd.Process.Kill()
		<-ended
	})
	testkit.Eventually(t, fmt.Sprintf("systemd in %s is up", ns), func() bool {
		select {
		case <-ended:
			t.Fatalf("systemd in %s exited: %s\n%s", ns, cmd.ProcessState, m.logged)
		default:
		}
		pid := cmd.Process.Pid
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		m.init = strings.TrimSpace(string(children))
		return m.init != "" && m.command("systemctl", "is-system-running").Run() == nil
	})
	return m
}

// unifiedGroups is where the second version of control groups is mounted.
func unifiedGroups(t testing.TB) string {
	t.Helper()
	for _, dir := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.controllers")); err == nil {
			return dir
		}
	}
	t.Fatal("cgroup2 is not mounted at /sys/fs/cgroup or below")
	return ""
}

// removeGroups removes the control groups. The last process of one may take a
// moment to end.
func (m *machine) removeGroups() {
	if !testkit.Within(testkit.Patience, func() bool {
		var all []string
		_ = filepath.WalkDir(m.groups, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				all = append(all, path)
			}
			return nil
		})
		slices.Reverse(all) // children first
		for _, dir := range all {
			_ = os.Remove(dir)
		}
		_, err := os.Stat(m.groups)
		return os.IsNotExist(err)
	}) {
		m.t.Errorf("the control group %s is left", m.groups)
	}
}

// command prepares a command on the machine.
func (m *machine) command(name string, args ...string) *netlab.Cmd {
	return m.ns.Command(context.Background(), "nsenter",
		append([]string{"--target=" + m.init, "--mount", "--pid", "--cgroup", "--", name}, args...)...)
}

// run runs a command on the machine and returns what it has printed.
func (m *machine) run(name string, args ...string) string {
	m.t.Helper()
	out, err := m.command(name, args...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// write makes a file on the machine, which may be executed.
func (m *machine) write(path, text string) {
	m.t.Helper()
	path = filepath.Join("/proc", m.init, "root", path)
	testkit.Must(m.t, os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o755))
}

// property returns a property of the service from systemd.
func (m *machine) property(name string) string {
	m.t.Helper()
	return m.run("systemctl", "show", "--value", "--property="+name, "twilld")
}

// comes waits until a property of the service has the value want, or begins with it
// if want ends in dots.
func (m *machine) comes(property, want string) {
	m.t.Helper()
	got := ""
	testkit.Eventually(m.t, fmt.Sprintf("%s is %s", property, want), func() bool {
		got = m.property(property)
		beginning, part := strings.CutSuffix(want, "…")
		return got == want || part && strings.HasPrefix(got, beginning)
	}, func() string { return fmt.Sprintf("it is %s", got) })
}

// inService runs a command of the shell with what the service can see and may
// write, and returns whether it succeeded.
func (m *machine) inService(command string) bool {
	m.t.Helper()
	pid := m.property("MainPID")
	return m.command("nsenter", "--target="+pid, "--mount", "--", "sh", "-c", command).Run() == nil
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	systemd, twilld.service, etcd in twilld
func TestServiceOfSystemdIsUpWhenPodsCanTalkAndMayDoLittle(t *testing.T) {
	t.Parallel()
	for backend, mtu := range map[string]int{"udp": 1472, "vxlan": 1450} {
		t.Run(backend, func(t *testing.T) {
			l := embeddedLab(t)
			a := boot(t, l.host.NS,
				"FLANNELD_IFACE="+netlab.UnderlayLink, "FLANNELD_IP_MASQ=true",
				"FLANNELD_EMBEDDED_ETCD=true", "FLANNELD_EMBEDDED_ETCD_LISTEN="+l.host.Addr.String(), "FLANNELD_EMBEDDED_ETCD_PLAINTEXT=true")

			a.run("systemctl", "start", "--no-block", "twilld")
			a.comes("StatusText", "waiting for a valid network configuration: …")
			if state := a.property("ActiveState"); state != "activating" {
				t.Errorf("without a network config the service is %s", state)
			}
			l.grantAll()
			l.etcdctl("put", etcdPrefix+"/config", `{"Network": "10.5.0.0/16", "Backend": {"Type": "`+backend+`"}}`)
			a.comes("ActiveState", "active")
			a.comes("StatusText", "ready")
			b := l.daemons[1]
			b.start()
			b.waitReady()
			testkit.Must(t, l.SetPodMTU(mtu), ping(l.pod(0), l.pod(1).Addr, mtu), ping(l.pod(1), l.pod(0).Addr, mtu))

			proc := a.run("cat", "/proc/"+a.property("MainPID")+"/status")
			for _, want := range []string{"CapBnd:\t0000000000003000\n", "CapEff:\t0000000000003000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
				if !strings.Contains(proc, want) {
					t.Errorf("no %q in\n%s", want, proc)
				}
			}
			for path, may := range map[string]bool{
				"/run/flannel/x": true, "/var/lib/twill/x": true, "/tmp/x": true,
				"/x": false, "/etc/x": false, "/run/x": false, "/var/lib/x": false, "/usr/x": false, "/home/x": false, "/root/x": false,
				"/proc/sys/net/ipv4/ip_forward": false, "/sys/fs/cgroup/x": false, "/dev/kmsg": false,
			} {
				if a.inService("echo 1 >"+path) != may {
					t.Errorf("the service may write %s: %v, want %v", path, !may, may)
				}
			}
			// The missing network config is the only error.
			log := a.run("journalctl", "--unit=twilld", "--no-pager", "--output=cat")
			if n := strings.Count(log, "level=ERROR"); n != 1 || !strings.Contains(log, "msg=ready") {
				t.Errorf("%d errors in\n%s", n, log)
			}

			if mode := a.run("stat", "--format=%a", "/run/flannel/subnet.env"); mode != "644" {
				t.Errorf("subnet.env has mode %s", mode)
			}

			a.run("systemctl", "stop", "twilld")
			if result := a.property("Result"); result != "success" {
				t.Errorf("the result of stopping is %s", result)
			}
			a.run("test", "-e", "/run/flannel/subnet.env", "-a", "-d", "/var/lib/twill/etcd")
			a.run("systemctl", "start", "twilld")
			testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, mtu))
		})
	}
}

func TestServiceOfSystemdIsStartedAgainUnlessItsCommandLineIsWrong(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	m := boot(t, s.NS, "FLANNELD_IFACE="+netlab.UnderlayLink, "FLANNELD_LEASE_FILE=/etc/twill/leases.json")
	m.write("/etc/twill/leases.json", soundLeases)
	m.run("systemctl", "start", "twilld")
	device := linkIndex(t, s.NS, "flannel0")

	const short = "/etc/systemd/system/twilld.service.d/watchdog.conf"
	for _, ends := range []string{
		"kill -KILL",
		"kill -ABRT", // what the watchdog does, and a panic
		"kill -STOP", // the watchdog finds it
	} {
		if ends == "kill -STOP" { // it may stop others too, on a busy machine
			m.write(short, "[Service]\nWatchdogSec=2s\nEnvironment=WATCHDOG_USEC=100000\n")
			m.run("sh", "-c", "systemctl daemon-reload && systemctl restart twilld && rm "+short+" && systemctl daemon-reload")
		}
		pid := m.property("MainPID")
		_ = m.command("sh", "-c", ends+" "+pid).Run() // fails if the watchdog was quicker
		testkit.Eventually(t, "systemd starts another process after "+ends, func() bool {
			now := m.property("MainPID")
			return now != pid && now != "0"
		})
		m.comes("ActiveState", "active")
		if now := linkIndex(t, s.NS, "flannel0"); now != device {
			t.Errorf("%s: flannel0 is another device: its queues did not outlive the process", ends)
		}
	}

	m.run("systemctl", "stop", "twilld")
	testkit.Eventually(t, "flannel0 disappears with the service", func() bool {
		_, err := s.NS.Netlink().LinkByName("flannel0")
		return err != nil
	})
	m.run("sh", "-c", "echo FLANNELD_IPTABLES_RESYNC=0 >>/etc/twill/twilld.env")
	if err := m.command("systemctl", "start", "twilld").Run(); err == nil {
		t.Error("a service with a wrong command line was started")
	}
	m.comes("ActiveState", "failed")
	if got := m.property("ExecMainStatus"); got != "2" {
		t.Errorf("exit code %s, want 2", got)
	}
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	systemd, twilld.service → another twilld
func TestReloadOfTheServiceReplacesTheProcessWithoutALostPacket(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	leases, err := os.ReadFile(l.leaseFile)
	testkit.Must(t, err)
	m := boot(t, l.Hosts[0].NS, "FLANNELD_IFACE="+netlab.UnderlayLink, "FLANNELD_LEASE_FILE=/etc/twill/leases.json")
	m.write("/etc/twill/leases.json", string(leases))
	m.run("systemctl", "start", "twilld")
	l.daemons[1].start()
	l.daemons[1].waitReady()
	testkit.Must(t, l.SetPodMTU(1472))
	device := linkIndex(t, m.ns, "flannel0")
	flows := l.flows()
	goOn(t, flows)

	first := m.property("MainPID")
	m.run("sh", "-c", "echo FLANNELD_HEALTHZ_PORT=8081 >>/etc/twill/twilld.env")
	m.run("systemctl", "reload", "twilld")
	second := m.property("MainPID")
	if second == first {
		t.Error("the process is the same after the reload")
	}
	if limits, want := m.run("grep", "-E", "^(CapBnd|CapEff|NoNewPrivs|Seccomp):", "/proc/"+second+"/status"),
		"CapEff:\t0000000000003000\nCapBnd:\t0000000000003000\nNoNewPrivs:\t1\nSeccomp:\t2"; limits != want {
		t.Errorf("the new process has\n%s\nwant\n%s", limits, want)
	}
	testkit.Eventually(t, "the new setting is in force", func() bool {
		c, err := m.ns.Dial(t.Context(), "tcp", "127.0.0.1:8081")
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	goOn(t, flows)
	for range 2 {
		fed := m.property("WatchdogTimestampMonotonic")
		testkit.Eventually(t, "the new process feeds the watchdog", func() bool { return m.property("WatchdogTimestampMonotonic") != fed })
	}

	m.run("sh", "-c", "echo FLANNELD_THREAD_PAIRS=-1 >>/etc/twill/twilld.env")
	if out, err := m.command("systemctl", "reload", "twilld").CombinedOutput(); err == nil {
		t.Errorf("a reload with invalid settings succeeds: %s", out)
	}
	if state, pid := m.property("ActiveState"), m.property("MainPID"); state != "active" || pid != second {
		t.Errorf("after a reload that failed the service is %s, process %s, want active, %s", state, pid, second)
	}
	goOn(t, flows)
	m.run("sed", "-i", "/THREAD_PAIRS/d", "/etc/twill/twilld.env")

	// systemd has noticed the end of the new process, and has its descriptors.
	m.run("systemctl", "restart", "twilld")
	m.comes("ActiveState", "active")
	goOn(t, flows)
	allArrived(t, flows)
	m.run("kill", "-KILL", m.property("MainPID"))
	m.comes("NRestarts", "1")
	m.comes("ActiveState", "active")
	if now := linkIndex(t, m.ns, "flannel0"); now != device {
		t.Errorf("flannel0 has index %d, it had %d", now, device)
	}
}

// The drop-in of deploy/examples/unprivileged, on a machine whose iptables is that of
// nftables.
//
// pod-a ── host a ──────────── host b ── pod-b
func TestServiceOfSystemdRunsAsAUserOfItsOwn(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	leases, err := os.ReadFile(l.leaseFile)
	testkit.Must(t, err)
	dropIn, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "examples", "unprivileged", "twilld.service.d", "unprivileged.conf"))
	testkit.Must(t, err)
	m := boot(t, l.Hosts[0].NS, "FLANNELD_IFACE="+netlab.UnderlayLink, "FLANNELD_LEASE_FILE=/etc/twill/leases.json", "FLANNELD_IP_MASQ=true")
	m.write("/etc/twill/leases.json", string(leases))
	m.write("/etc/systemd/system/twilld.service.d/unprivileged.conf", string(dropIn))
	// The device node has the mode that udev gives it.
	m.run("sh", "-ec", `echo twill:x:4242:4242::/:/bin/false >>/etc/passwd
		echo twill:x:4242: >>/etc/group
		umount /dev/net/tun; rm /dev/net/tun; mknod -m 666 /dev/net/tun c 10 200
		systemctl daemon-reload`)
	m.run("systemctl", "start", "twilld")
	l.daemons[1].start()
	l.daemons[1].waitReady()
	testkit.Must(t, l.SetPodMTU(1472))
	flows := l.flows()
	goOn(t, flows)
	m.run("systemctl", "reload", "twilld")
	goOn(t, flows)
	m.run("systemctl", "restart", "twilld")
	goOn(t, flows)
	allArrived(t, flows)
	proc := m.run("cat", "/proc/"+m.property("MainPID")+"/status")
	for _, want := range []string{"Uid:\t4242\t4242\t", "CapBnd:\t0000000000001000\n", "CapEff:\t0000000000001000\n"} {
		if !strings.Contains(proc, want) {
			t.Errorf("no %q in\n%s", want, proc)
		}
	}
	if log := m.run("journalctl", "--unit=twilld", "--no-pager", "--output=cat"); strings.Contains(log, "permi") || strings.Contains(log, "level=ERROR") {
		t.Errorf("complaints:\n%s", log) // permission denied, operation not permitted
	}
}
