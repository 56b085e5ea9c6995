package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// mounted is the directory of a service account in a pod. As in what the kubelet
// mounts, a link leads to the version that is in force.
type mounted struct {
	t       *testing.T
	dir     string
	version int
}

// put replaces all files at once.
func (m *mounted) put(files map[string]string) {
	m.t.Helper()
	m.version++
	version := fmt.Sprintf("..%d", m.version)
	testkit.Must(m.t, os.Mkdir(filepath.Join(m.dir, version), 0o755))
	for name, text := range files {
		testkit.Must(m.t, os.WriteFile(filepath.Join(m.dir, version, name), []byte(text), 0o600))
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(m.dir, name)); err != nil && !os.IsExist(err) {
			m.t.Fatal(err)
		}
	}
	testkit.Must(m.t, os.Symlink(version, filepath.Join(m.dir, "..new")),
		os.Rename(filepath.Join(m.dir, "..new"), filepath.Join(m.dir, "..data")))
}

// inPod makes the daemon of host number i, which is not running yet, find what a pod of
// flannel's manifest finds: its name, where the API is, and a service account.
func (l *kubeLab) inPod(i int) *mounted {
	l.t.Helper()
	d, pod := l.daemons[i], "flannel-"+l.Hosts[i].Letter
	l.AddPod(pod, l.node(i))
	host, port, err := net.SplitHostPort(strings.TrimPrefix(l.URL, "https://"))
	testkit.Must(l.t, err)
	m := &mounted{t: l.t.(*testing.T), dir: scratchDir(l.t)}
	d.args = slices.DeleteFunc(d.args, func(a string) bool { return strings.HasPrefix(a, "--kubeconfig-file=") })
	const script = `mount -t tmpfs none /var/run && mkdir -p /var/run/secrets/kubernetes.io/serviceaccount &&
		mount --bind "$0" /var/run/secrets/kubernetes.io/serviceaccount && exec "$@"`
	d.wrap = []string{
		"env", "-u", "NODE_NAME", "POD_NAME=" + pod, "POD_NAMESPACE=default", "KUBERNETES_SERVICE_HOST=" + host, "KUBERNETES_SERVICE_PORT=" + port,
		"unshare", "--mount", "sh", "-c", script, m.dir,
	}
	return m
}

// account is the content of a service account's directory with a token.
func (l *kubeLab) account(token string) map[string]string {
	return map[string]string{"token": token, "ca.crt": textOf(l.t, l.CAFile), "namespace": "default"}
}

func TestKubeServiceAccountOfAPodIsReadAgain(t *testing.T) {
	t.Parallel()
	l := newKubeLab(t, 1, `{"Type": "vxlan"}`)
	d, m := l.daemons[0], l.inPod(0)
	d.startWaiting("/var/run/secrets/kubernetes.io/serviceaccount/ca.crt")

	m.put(l.account(l.ServiceAccountToken("first")))
	d.waitReady()
	if got := l.Node("node-a").OurAnnotations("flannel.alpha.coreos.com/")["public-ip"]; got != l.Hosts[0].Addr.String() {
		t.Errorf("the node is annotated with the address %q", got)
	}

	// The kubelet replaces the token long before its end.
	m.put(l.account(l.ServiceAccountToken("second")))
	l.DeleteSecret("first")
	l.Kill() // the API server authenticates the client when a watch begins
	l.Restart()
	l.AddAnnotatedNode("node-y", stockAnnotations("172.31.9.98"), "10.5.98.0/24")
	l.sees(0, 2)

	l.ReplaceAuthority()
	d.waits("check the certificate authority")
	m.put(l.account(l.ServiceAccountToken("third")))
	l.DeleteNode("node-y")
	l.sees(0, 1)
	testkit.Eventually(t, "ready again", func() bool { return d.status().Waiting == "" })
}

// Each verb of flannel's ClusterRole except list: it is not used with an API server that
// streams the list, as this one does.
func TestKubeMissingRightIsNamedAndComesBackWithoutARestart(t *testing.T) {
	t.Parallel()
	l := newKubeLab(t, 1, `{"Type": "vxlan"}`)
	d, m := l.daemons[0], l.inPod(0)
	m.put(l.account(l.ServiceAccountToken("token")))
	for _, tt := range []struct{ resource, verb string }{
		{"pods", "get"}, {"nodes", "get"}, {"nodes", "watch"}, {"nodes/status", "patch"},
	} {
		l.DeleteNode("node-a")
		l.AddNode("node-a", l.Hosts[0].Subnet.String()) // without annotations
		restore := l.Withhold(tt.resource, tt.verb)
		d.startWaiting(fmt.Sprintf("cannot %s resource %q", tt.verb, tt.resource))
		if got := d.status().Waiting; !strings.Contains(got, "ClusterRole flannel") {
			t.Errorf("it does not name the remedy: %s", got)
		}
		restore()
		d.waitReady()
		d.stop(syscall.SIGTERM)
	}
}

// startWaiting starts the daemon, which must wait for something.
func (d *daemon) startWaiting(why string) {
	d.t.Helper()
	d.start()
	testkit.Eventually(d.t, "it answers", func() bool { return d.tryStatus() != nil })
	d.waits(why)
}

// One right is missing, so the daemon's own changes are refused while those of others
// arrive.
func TestKubeMissingRightIsReportedOnceWhileLeasesChange(t *testing.T) {
	t.Parallel()
	l := newKubeLab(t, 1, `{"Type": "vxlan"}`)
	l.start()
	d := l.daemons[0]
	const (
		unserved, serves = "Kubernetes API does not serve this node", "Kubernetes API answers again"
		refused, valid   = "lease source rejected", "lease source is valid again"
		notReady         = "not ready"
	)
	restore := l.Withhold("nodes/status", "patch")
	l.Annotate("node-a", map[string]any{"flannel.alpha.coreos.com/public-ip": "172.31.9.66"})
	d.waits(`cannot patch resource "nodes/status"`)
	const changes = 3
	for i := range changes {
		l.AddAnnotatedNode(fmt.Sprintf("node-%d", i), stockAnnotations(fmt.Sprintf("172.31.9.%d", 90+i)), fmt.Sprintf("10.5.%d.0/24", 90+i))
		l.sees(0, 2+i)
	}
	if got := d.status().Waiting; !strings.Contains(got, `cannot patch resource "nodes/status"`) {
		t.Errorf("although leases arrive, it no longer waits for the right, but for %q", got)
	}
	for _, line := range []string{valid, serves} {
		if strings.Contains(d.stderr.String(), line) {
			t.Errorf("it logs %q while the right is missing", line)
		}
	}
	restore()
	testkit.Eventually(t, "ready again", func() bool { return d.status().Waiting == "" })
	testkit.Eventually(t, "the log has the lines", func() bool {
		return strings.Contains(d.stderr.String(), serves) && strings.Contains(d.stderr.String(), valid)
	})
	for _, line := range []string{unserved, refused, notReady, serves, valid} {
		if n := strings.Count(d.stderr.String(), line); n != 1 {
			t.Errorf("%q is logged %d times, want once:\n%s", line, n, d.stderr.String())
		}
	}
}
