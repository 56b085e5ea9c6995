package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// example returns a file of deploy/examples, with the addresses of its nodes
// replaced by those of hosts a and b.
func example(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "examples", name))
	testkit.Must(t, err)
	return strings.NewReplacer("192.0.2.11", "172.31.9.11", "192.0.2.12", "172.31.9.12").Replace(string(text))
}

// connects waits until packets of the pods' new MTU pass in both directions. A packet
// can be lost while a node applies the lease of the other.
func (l *lab) connects(mtu int) {
	l.t.Helper()
	testkit.Must(l.t, l.SetPodMTU(mtu))
	for i := range 2 {
		from, to := l.pod(i), l.pod(1-i).Addr
		testkit.Eventually(l.t, fmt.Sprintf("%s answers at an MTU of %d", to, mtu), func() bool {
			return pingWithin(time.Second, from, to, mtu) == nil
		})
	}
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	systemd, twilld.service     twilld
func TestExampleWithALeaseFileConnectsPods(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{Options: netlab.Options{Hosts: 2}, idle: true})
	a := boot(t, l.Hosts[0].NS, example(t, "lease-file/twilld.env"))
	a.write("/etc/twill/leases.json", example(t, "lease-file/leases.json"))
	b := l.daemons[1]
	testkit.Must(t, os.WriteFile(l.leaseFile, []byte(example(t, "lease-file/leases.json")), 0o644))

	a.run("systemctl", "start", "--no-block", "twilld")
	a.comes("ActiveState", "active")
	b.start()
	b.waitReady()

	l.connects(1472)
}

// pod-a ── host a ──────────── host b ── pod-b    host c
//
//	systemd, twilld.service     twilld              etcd
func TestExampleWithEtcdConnectsPods(t *testing.T) {
	t.Parallel()
	l := serveEtcd(t, newLab(t, labOptions{Options: netlab.Options{Hosts: 3}, nodes: 2, idle: true}))
	l.put("config", example(t, "etcd/network.json"))
	l.grantAll()
	a := boot(t, l.Hosts[0].NS,
		strings.ReplaceAll(example(t, "etcd/twilld.env"), "http://192.0.2.1:2379", l.endpoint()),
		"FLANNELD_IFACE="+netlab.UnderlayLink) // hosts of the laboratory have no default route
	a.write("/etc/systemd/system/twilld.service.d/node.conf", example(t, "etcd/twilld.service.d/node.conf"))
	a.run("systemctl", "daemon-reload")
	a.run("sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")
	b := l.daemons[1]
	b.readEtcd(l.endpoint())

	a.run("systemctl", "start", "--no-block", "twilld")
	a.comes("ActiveState", "active")
	b.start()
	b.waitReady()

	l.connects(1450)
	if got := a.property("MemoryMax"); got != "268435456" {
		t.Errorf("the service may use %s bytes of memory, want 256 MiB", got)
	}
	answer := a.run("bash", "-c", `exec 3<>/dev/tcp/127.0.0.1/8081; printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3; cat <&3`)
	if !strings.HasPrefix(answer, "HTTP/1.0 200 OK") {
		t.Errorf("/readyz returns %s", answer)
	}
}

// This dockerd records its arguments and keeps running.
func TestExampleWithDockerStartsItWithTwilldsOptionsAndKeepsIt(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	s := newSite(t)
	m := boot(t, s.NS, example(t, "docker/twilld.env"))
	twill, err := os.ReadFile(bin("twill"))
	testkit.Must(t, err)
	m.write("/usr/local/bin/twill", string(twill))
	m.write("/etc/twill/leases.json", example(t, "lease-file/leases.json"))
	m.write("/usr/local/bin/dockerd", "#!/bin/sh\necho \"$@\" >/run/dockerd.called\nexec sleep 1000\n")
	m.write("/etc/systemd/system/docker.service", "[Service]\nExecStart=/usr/sbin/dockerd -H fd://\n")
	m.write("/etc/systemd/system/docker.service.d/twill.conf",
		strings.ReplaceAll(example(t, "docker/docker.service.d/twill.conf"), "/usr/sbin/dockerd", "/usr/local/bin/dockerd"))
	m.run("systemctl", "daemon-reload")

	m.run("systemctl", "start", "docker")
	want := "-H fd:// --bip=10.5.1.1/24 --ip-masq=false --mtu=1472"
	called := func() string {
		out, _ := m.command("cat", "/run/dockerd.called").Output()
		return strings.TrimSpace(string(out))
	}
	if !testkit.Within(testkit.Patience, func() bool { return called() == want }) {
		t.Errorf("dockerd was called with %q, want %q", called(), want)
	}
	docker := func() string { return m.run("systemctl", "show", "--value", "--property=MainPID", "docker") }
	before := docker()
	m.run("systemctl", "restart", "twilld")
	if after := docker(); after != before || before == "0" {
		t.Errorf("dockerd was process %s, and is %s after a restart of twilld", before, after)
	}
}
