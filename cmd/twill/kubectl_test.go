package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/doctor"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/etcd"
	"github.com/twillnet/twill/lease/kube/layout"
)

// twoNodes is what "kubectl get nodes --output=json" prints, in short: one that runs
// flannel, and one that does not.
const twoNodes = `{"apiVersion": "v1", "kind": "List", "items": [
{"metadata": {"name": "n1", "annotations": {
	"flannel.alpha.coreos.com/kube-subnet-manager": "true", "flannel.alpha.coreos.com/backend-type": "vxlan",
	"flannel.alpha.coreos.com/backend-data": "{\"VNI\":1}", "flannel.alpha.coreos.com/public-ip": "192.0.2.1"}},
 "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"]},
 "status": {"conditions": [{"type": "NetworkUnavailable", "status": "False", "lastHeartbeatTime": null}]}},
{"metadata": {"name": "n2"}, "spec": {"podCIDR": "10.244.2.0/24"}}]}`

// putKubectl makes a script the first kubectl in PATH. It records its arguments in the
// file that is returned.
func putKubectl(t *testing.T, script string) (arguments string) {
	t.Helper()
	dir := t.TempDir()
	arguments = filepath.Join(dir, "arguments")
	script = "#!/bin/sh\necho \"$*\" >>" + arguments + "\n" + script + "\n"
	testkit.Must(t, os.WriteFile(filepath.Join(dir, "kubectl"), []byte(script), 0o755))
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	return arguments
}

func printing(text string) string { return "cat <<'END'\n" + text + "\nEND" }

// away are the flags of commands outside of the cluster.
func away(args ...string) []string {
	return append(args, "--socket=/nonexistent/twilld.sock", "--net-config-path=/nonexistent/net-conf.json", "--timeout=10s")
}

func TestKubectlReadsLeasesWhereNoDaemonRuns(t *testing.T) {
	o := &operator{T: t}
	for _, tt := range []struct{ flags, want string }{
		{"--kubeconfig-file=/etc/admin.conf", "--kubeconfig=/etc/admin.conf get nodes --output=json"},
		{"--kubeconfig-file=/etc/admin.conf --kube-api-url=https://192.0.2.9", "--kubeconfig=/etc/admin.conf --server=https://192.0.2.9 get nodes --output=json"},
		{"--kube-api-url=http://192.0.2.9", "--kubeconfig=/dev/null --server=http://192.0.2.9 get nodes --output=json"},
		{"--kube-subnet-mgr", "get nodes --output=json"},
	} {
		arguments := putKubectl(t, printing(twoNodes))
		o.prints(""+
			"NODE       SUBNET         BACKEND  EXPIRES        LAST TRAFFIC  SENT  RECEIVED\n"+
			"192.0.2.1  10.244.1.0/24  vxlan    with the node  -             -     -\n",
			away(append([]string{"leases"}, strings.Fields(tt.flags)...)...)...)
		got, err := os.ReadFile(arguments)
		if err != nil || strings.TrimSpace(string(got)) != tt.want {
			t.Errorf("%s: kubectl was run with %q, %v; want %q", tt.flags, got, err, tt.want)
		}
	}
}

func TestKubectlReadsTheConfigMapWhereThereIsNoFile(t *testing.T) {
	o := &operator{T: t}
	const config = `{"data": {"net-conf.json": "{\"Network\": \"10.244.0.0/16\"}"}}`
	get := away("config", "get", "--kube-subnet-mgr")
	putKubectl(t, `case "$*" in *kube-system*) `+printing(config)+"\nesac")
	o.prints(`{"Network": "10.244.0.0/16"}`+"\n", get...)
	putKubectl(t, "true")
	o.refuses("/nonexistent/net-conf.json", get...)
	putKubectl(t, printing(`{"metadata": {}}`))
	o.refuses("ConfigMap kube-flannel/kube-flannel-cfg has no key net-conf.json; add it", get...)
}

func TestErrorsOfKubectlAreReported(t *testing.T) {
	o := &operator{T: t}
	leases := away("leases", "--kubeconfig-file=/etc/admin.conf")
	putKubectl(t, "echo 'E1130 memcache.go:265 a line of its log' >&2; echo 'error: You must be logged in to the server' >&2; exit 1")
	o.refuses("list nodes: kubectl: You must be logged in to the server; correct what this command reports: kubectl --kubeconfig=/etc/admin.conf get nodes", leases...)
	putKubectl(t, "echo this is no JSON")
	o.refuses("list of nodes", leases...)
	putKubectl(t, "exec sleep 60")
	o.refuses("did not answer in time", append(leases, "--timeout=100ms")...)
	t.Setenv("PATH", "/nonexistent")
	o.refuses("kubectl is not in PATH; install kubectl", leases...)
}

// kubeStore is what a daemon's store in Kubernetes would answer.
type kubeStore struct {
	leases []lease.Lease
	config string
	err    error
}

func (s kubeStore) Leases(context.Context) ([]lease.Lease, error) { return s.leases, s.err }
func (s kubeStore) PublishedText(context.Context) ([]byte, error) { return []byte(s.config), s.err }

// kubeDaemonSays is daemonSays for a daemon whose leases are in Kubernetes.
func kubeDaemonSays(t *testing.T, s status.Store) (socket string) {
	t.Helper()
	return readerSays(t, s, status.Settings{Kubernetes: &status.Kubernetes{Prefix: layout.DefaultPrefix, ConfigFile: "/etc/net-conf.json"}})
}

// readerSays is daemonSays for a daemon that reads its store for the commands.
func readerSays(t *testing.T, s status.Store, settings status.Settings) (socket string) {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "twill") // short enough for a socket
	testkit.Must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket = filepath.Join(dir, "twilld.sock")
	d := status.Document{Settings: &settings}
	server, err := status.Listen(socket, func() status.Document { return d }, slog.New(slog.DiscardHandler), status.StoreRoutes(func() status.Store { return s })...)
	testkit.Must(t, err)
	t.Cleanup(func() { server.Close() })
	return socket
}

// TestDaemonReadsKubernetesForTheCommandsOnItsNode: there is no kubectl.
func TestDaemonReadsKubernetesForTheCommandsOnItsNode(t *testing.T) {
	t.Setenv("PATH", "/nonexistent")
	o := &operator{T: t}
	l := lease.Lease{Subnet: netip.MustParsePrefix("10.244.1.0/24"), Attrs: lease.Attrs{PublicIP: netip.MustParseAddr("192.0.2.1"), BackendType: "host-gw"}}
	socket := kubeDaemonSays(t, kubeStore{leases: []lease.Lease{l}, config: `{"Network": "10.244.0.0/16"}`})
	o.prints(""+
		"NODE       SUBNET         BACKEND  EXPIRES        LAST TRAFFIC  SENT  RECEIVED\n"+
		"192.0.2.1  10.244.1.0/24  host-gw  with the node  -             -     -\n",
		"leases", "--socket", socket)
	o.prints(`{"Network": "10.244.0.0/16"}`+"\n", "config", "get", "--socket", socket)

	// Another cluster is not the daemon's to ask.
	putKubectl(t, printing(twoNodes))
	if out, _, err := o.twill("leases", "--socket", socket, "--kubeconfig-file=/etc/other.conf"); err != nil || !strings.Contains(out, "vxlan") {
		t.Errorf("leases of another cluster: %q, %v", out, err)
	}
}

func TestDoctorSeparatesTheRemedyOfTheDaemonsStore(t *testing.T) {
	o := &operator{T: t}
	socket := kubeDaemonSays(t, kubeStore{err: &layout.Error{Op: "list nodes", Err: errors.New("forbidden"), Remedy: "let this user list nodes"}})
	o.refuses("Kubernetes: list nodes: forbidden; let this user list nodes", "leases", "--socket", socket)
	out, _, _ := o.twill("doctor", "--json", "--socket", socket, "--subnet-file=/nonexistent/subnet.env")
	if f := finding(t, out, "store"); f.Text != "Kubernetes: list nodes: forbidden" || f.Remedy != "let this user list nodes" {
		t.Errorf("doctor: got %+v", f)
	}
}

func TestDaemonThatHasNoStoreYetIsNamed(t *testing.T) {
	o := &operator{T: t}
	o.refuses("has not opened the store yet", "leases", "--socket", kubeDaemonSays(t, nil))
	older := daemonSays(t, status.Document{Settings: &status.Settings{Kubernetes: &status.Kubernetes{}}})
	o.refuses("it does not serve /store/leases; restart it", "leases", "--socket", older)
}

// TestDaemonThatLogsInToEtcdReadsItForTheCommands: nothing listens at the endpoint.
func TestDaemonThatLogsInToEtcdReadsItForTheCommands(t *testing.T) {
	o := &operator{T: t}
	settings := status.Settings{Endpoints: []string{"http://127.0.0.1:1"}, Prefix: "/n", Login: true}
	says := func(s kubeStore) string { return "--socket=" + readerSays(t, s, settings) }
	good := says(kubeStore{config: someConfig})
	o.prints(someConfig+"\n", "config", "get", good)
	for _, flags := range []string{"--etcd-prefix=/other", "--etcd-username=u --etcd-password=p", "--etcd-endpoints=http://127.0.0.1:2"} {
		o.refuses("127.0.0.1", append([]string{"leases", good, "--timeout=100ms"}, strings.Fields(flags)...)...) // not the daemon's to ask
	}
	const remedy = "correct it with twill config set"
	for name, socket := range map[string]string{
		"a config that is wrong": says(kubeStore{config: `{"Network": 1}`}),
		"a store that refuses":   says(kubeStore{err: &etcd.Error{Endpoints: settings.Endpoints, Op: "config /n/config", Err: errors.New("Network: no"), Remedy: remedy}}),
	} {
		out, _, _ := o.twill("doctor", "--json", socket, "--subnet-file=/nonexistent/subnet.env")
		if f := finding(t, out, "store"); f.Level != doctor.Bad || f.Remedy != remedy || !strings.HasPrefix(f.Text, "etcd http://127.0.0.1:1: config /n/config: ") {
			t.Errorf("%s: got %+v", name, f)
		}
	}
}
