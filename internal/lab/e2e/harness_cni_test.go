package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// conflist is the CNI configuration of flannel's manifest, with another subnet file.
const conflist = `{
	"name": "cbr0",
	"cniVersion": %q,
	"plugins": [
		{"type": "flannel", "subnetFile": %q, "delegate": {"hairpinMode": true, "isDefaultGateway": true}},
		{"type": "portmap", "capabilities": {"portMappings": true}}
	]
}`

// cniNode is a node whose pods are attached by CNI plugins: cnitool calls them in a
// container runtime's place.
type cniNode struct {
	t    testing.TB
	ns   *netlab.Namespace
	conf string // directory of the configuration
	lib  string // stands for /var/lib
	path string // of the plugins
}

// pluginsDir is where make cni puts the plugins, of which the delegate is one.
func pluginsDir(t testing.TB) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "..", "..", "bin", "peers", "cni"))
	testkit.Must(t, err)
	if _, err := os.Stat(filepath.Join(dir, "cnitool")); err != nil {
		t.Fatalf("%s does not exist: run make cni in the root of the repository", dir)
	}
	return dir
}

// buildPlugin builds the plugin flannel, once.
var buildPlugin = sync.OnceValue(func() error { return build("flannel", "./cmd/flannel-cni") })

// newCNINode prepares the node in ns, which has the subnet file.
func newCNINode(t testing.TB, ns *netlab.Namespace, version, subnetFile string) *cniNode {
	t.Helper()
	testkit.Must(t, buildPlugin())
	dir := scratchDir(t)
	n := &cniNode{t: t, ns: ns, conf: filepath.Join(dir, "net.d"), lib: filepath.Join(dir, "lib"),
		path: binDir + ":" + pluginsDir(t)}
	testkit.Must(t, os.MkdirAll(n.conf, 0o755))
	testkit.Must(t, os.MkdirAll(n.lib, 0o755))
	testkit.Must(t, os.WriteFile(filepath.Join(n.conf, "10-flannel.conflist"), fmt.Appendf(nil, conflist, version, subnetFile), 0o644))
	return n
}

// cnitool runs one command for a pod, a name under /run/netns.
func (n *cniNode) cnitool(command, pod string, env ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := n.ns.Command(ctx, "unshare", "--mount", "sh", "-c", `mount --bind "$1" /var/lib && shift && exec "$@"`, "sh",
		n.lib, filepath.Join(pluginsDir(n.t), "cnitool"), command, "cbr0", filepath.Join("/run/netns", pod))
	cmd.Env = append(os.Environ(), append(env, "CNI_PATH="+n.path, "NETCONFPATH="+n.conf)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("cnitool %s %s: %w\n%s", command, pod, err, out)
	}
	return string(out), nil
}

// cniPod is a pod that cnitool has attached.
type cniPod struct {
	netlab.Pod
	node *cniNode
	name string
}

var podNames struct {
	sync.Mutex
	n int
}

// newPod makes a namespace and attaches it.
func (n *cniNode) newPod(env ...string) (*cniPod, error) {
	podNames.Lock()
	podNames.n++
	name := fmt.Sprintf("twill-cni-%d-%d", os.Getpid(), podNames.n)
	podNames.Unlock()
	ns, err := netlab.NewNamed(name)
	if err != nil {
		return nil, err
	}
	p := &cniPod{netlab.Pod{NS: ns}, n, name}
	out, err := n.cnitool("add", name, env...)
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	var result struct {
		IPs []struct{ Address netip.Prefix }
	}
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &result); err != nil {
		return nil, errors.Join(fmt.Errorf("result %q: %w", out, err), ns.Close())
	}
	for _, ip := range result.IPs {
		if a := ip.Address.Addr(); a.Is4() {
			p.Addr = a
		} else {
			p.Addr6 = a
		}
	}
	return p, nil
}

// pod is newPod, which must succeed, for the duration of the test.
func (n *cniNode) pod(env ...string) *cniPod {
	n.t.Helper()
	p, err := n.newPod(env...)
	testkit.Must(n.t, err)
	n.t.Cleanup(func() { _ = p.delete(env...) })
	return p
}

// delete detaches the pod and removes its namespace.
func (p *cniPod) delete(env ...string) error {
	_, err := p.node.cnitool("del", p.name, env...)
	return errors.Join(err, p.NS.Close())
}

// state returns the files under /var/lib/cni that belong to a pod.
func (n *cniNode) state() []string {
	n.t.Helper()
	return cniState(n.t, filepath.Join(n.lib, "cni"))
}

// cniState returns the files under a node's /var/lib/cni that belong to a pod: what
// host-local keeps for each network, whatever pods there are, is left out.
func cniState(t testing.TB, dir string) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() != "lock" && !strings.HasPrefix(e.Name(), "last_reserved_ip.") {
			files = append(files, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return files
}

// links returns the names of the node's veth devices.
func (n *cniNode) links() (names []string) {
	n.t.Helper()
	links, err := n.ns.Netlink().LinkList()
	testkit.Must(n.t, err)
	for _, l := range links {
		if l.Type() == "veth" && l.Attrs().MasterIndex != 0 {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names
}

// rules returns the node's firewall rules, counters left out.
func (n *cniNode) rules() string {
	n.t.Helper()
	out, err := n.ns.Command(context.Background(), "nft", "--stateless", "list", "ruleset").CombinedOutput()
	testkit.Must(n.t, err)
	return string(out)
}
