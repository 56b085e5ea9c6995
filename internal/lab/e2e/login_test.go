package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/lab/etcdtest"
	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// pod-a ── host a ──────────── host b ── pod-b
//
//	twill      etcd ────── host c, which requires a password
func TestCommandsReadAnEtcdWhosePasswordOnlyTheDaemonHas(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	const password = "open-sesame"
	l := serveEtcdCluster(t, newLab(t, labOptions{
		Options: netlab.Options{Hosts: 3}, nodes: 2, idle: true, flags: []string{"--etcd-username=root", "--etcd-password=" + password},
	}), 1, etcdtest.Options{Flags: []string{"--bcrypt-cost=4"}})
	const config = `{"Network": "10.5.0.0/16", "Backend": {"Type": "udp"}}`
	l.put("config", config)
	l.grantAll()
	l.etcdctl("user", "add", "root:"+password)
	l.etcdctl("user", "grant-role", "root", "root")
	l.etcdctl("auth", "enable")
	for _, d := range l.daemons {
		d.readEtcd(l.endpoint())
	}
	l.start()
	a := l.daemons[0]
	// As over ssh, no variable has the password.
	twill := func(args ...string) (string, error) {
		out, err := a.ns.Command(t.Context(), bin("twill"), append(args, "--socket="+a.socket)...).CombinedOutput()
		return string(out), err
	}

	found, _ := a.doctor()
	if !slices.ContainsFunc(found, func(f doctor.Finding) bool { return f.Check == "store" && f.Level == doctor.OK }) {
		t.Errorf("doctor does not find that the store answers: %+v", found)
	}
	if out, err := twill("leases"); err != nil || !strings.Contains(out, "172.31.9.12") || !strings.Contains(out, "(this node)") {
		t.Errorf("leases: %v\n%s", err, out)
	}
	if out, err := twill("config", "get"); err != nil || out != config+"\n" {
		t.Errorf("config get: %v\n%s", err, out)
	}

	// What writes needs the password.
	if out, err := twill("reserve", "10.5.77.0/24"); err == nil || !strings.Contains(out, "set --etcd-username and --etcd-password") {
		t.Errorf("reserve without the password: %v\n%s", err, out)
	}
	if out, err := twill("reserve", "10.5.77.0/24", "--etcd-username=root", "--etcd-password="+password); err != nil {
		t.Errorf("reserve: %v\n%s", err, out)
	}
	if out, err := twill("leases"); err != nil || !strings.Contains(out, "10.5.77.0/24") || !strings.Contains(out, "reserved") {
		t.Errorf("leases: %v\n%s", err, out)
	}
	// A wrong password is not the daemon's.
	if out, err := twill("leases", "--etcd-username=root", "--etcd-password=wrong"); err == nil || !strings.Contains(out, "check --etcd-username and --etcd-password") {
		t.Errorf("leases with a wrong password: %v\n%s", err, out)
	}
}
