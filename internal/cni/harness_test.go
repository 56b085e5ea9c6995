package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

const (
	subnetIPv4 = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"
	subnetTwo  = "FLANNEL_NETWORK=10.1.0.0/16,192.168.0.0/16,10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"
	subnetIPv6 = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"
	subnetDual = "\nFLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.17.1/24\nFLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"
)

// called is one run of a delegate.
type called struct {
	plugin, command, container, ifName string
	conf                               map[string]any
}

func (c called) String() string {
	return fmt.Sprintf("%s %s %s/%s", c.plugin, c.command, c.container, c.ifName)
}

// delegates is an invoke.Exec in whose place no programs run.
type delegates struct {
	version.PluginDecoder
	calls []called
	fail  map[string]error // by command
	none  []string         // plugins that are not installed
}

func (d *delegates) FindInPath(plugin string, _ []string) (string, error) {
	if slices.Contains(d.none, plugin) {
		return "", errors.New("not found")
	}
	return filepath.Join("/plugins", plugin), nil
}

func (d *delegates) ExecPlugin(_ context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	env := map[string]string{}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	c := called{filepath.Base(path), env["CNI_COMMAND"], env["CNI_CONTAINERID"], env["CNI_IFNAME"], nil}
	if err := json.Unmarshal(stdin, &c.conf); err != nil {
		return nil, err
	}
	d.calls = append(d.calls, c)
	if err := d.fail[c.command]; err != nil {
		return nil, err
	}
	return []byte(`{"ip4": {"ip": "10.1.17.2/24"}}`), nil // of version 0.1.0, and no field of a later one
}

// node is a node on which a test calls the plugin.
type testNode struct {
	t          *testing.T
	subnetFile string
	dataDir    string
	delegates  delegates
	stderr     bytes.Buffer
}

func newNode(t *testing.T, subnetEnv string) *testNode {
	t.Helper()
	dir := t.TempDir()
	n := &testNode{t: t, subnetFile: filepath.Join(dir, "subnet.env"), dataDir: filepath.Join(dir, "data")}
	n.setSubnet(subnetEnv)
	return n
}

func (n *testNode) setSubnet(text string) {
	n.t.Helper()
	if err := os.WriteFile(n.subnetFile, []byte(text), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

// conf is a configuration of this node with more keys, each as `"key": value`.
func (n *testNode) conf(more ...string) string {
	keys := append([]string{
		`"name": "cni-flannel"`, `"type": "flannel"`,
		fmt.Sprintf(`"subnetFile": %q`, n.subnetFile), fmt.Sprintf(`"dataDir": %q`, n.dataDir),
	}, more...)
	return "{" + strings.Join(keys, ", ") + "}"
}

// call runs one command of the plugin and returns what it prints.
func (n *testNode) call(command, container, ifName, conf string) (string, error) {
	n.t.Helper()
	var stdout bytes.Buffer
	p := &plugin{exec: &n.delegates, stdout: &stdout, stderr: &n.stderr}
	args := &skel.CmdArgs{
		ContainerID: container, IfName: ifName, Netns: "/run/netns/" + container,
		Path: "/plugins", StdinData: []byte(conf),
	}
	f := p.funcs()
	run := map[string]func(*skel.CmdArgs) error{
		"ADD": f.Add, "DEL": f.Del, "CHECK": f.Check, "STATUS": f.Status, "GC": f.GC,
	}[command]
	err := run(args)
	return stdout.String(), err
}

// must is call of what succeeds.
func (n *testNode) must(command, container, ifName, conf string) string {
	n.t.Helper()
	out, err := n.call(command, container, ifName, conf)
	if err != nil {
		n.t.Fatalf("%s %s/%s: %v", command, container, ifName, err)
	}
	return out
}

// ran returns the delegates' calls since the last ran, as text.
func (n *testNode) ran() []string {
	var calls []string
	for _, c := range n.delegates.calls {
		calls = append(calls, c.String())
	}
	n.delegates.calls = nil
	return calls
}

// files returns the names in the data directory.
func (n *testNode) files() []string {
	n.t.Helper()
	entries, err := os.ReadDir(n.dataDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (n *testNode) wantFiles(want ...string) {
	n.t.Helper()
	if want == nil {
		want = []string{}
	}
	if got := n.files(); !slices.Equal(got, want) {
		n.t.Errorf("data directory has %q, want %q", got, want)
	}
}

func (n *testNode) wantRan(want ...string) {
	n.t.Helper()
	if got := n.ran(); !slices.Equal(got, want) {
		n.t.Errorf("delegates ran\n  %q, want\n  %q", got, want)
	}
}

// put writes a file into the data directory, as stock or a crash may have left it.
func (n *testNode) put(name, text string) {
	n.t.Helper()
	if err := os.MkdirAll(n.dataDir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.dataDir, name), []byte(text), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// wantError checks that err has the code and all the words.
func wantError(t *testing.T, err error, code uint, words ...string) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) {
		t.Errorf("got %v, want an error with code %d", err, code)
		return
	}
	if e.Code != code {
		t.Errorf("got code %d (%v), want %d", e.Code, err, code)
	}
	for _, w := range words {
		if !strings.Contains(e.Error(), w) {
			t.Errorf("got %q, want %q in it", e.Error(), w)
		}
	}
}

// sameJSON checks got against a text of JSON, whatever the order and the spaces.
func sameJSON(t *testing.T, got any, want string) {
	t.Helper()
	var w any
	if err := json.Unmarshal([]byte(want), &w); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, w) {
		text, _ := json.MarshalIndent(got, "", "  ")
		t.Errorf("got\n%s\nwant\n%s", text, want)
	}
}
