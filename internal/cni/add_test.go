package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// What ADD gives the delegate and saves is what flannel's plugin does.
func TestAddAndDelAsFlannelDoes(t *testing.T) {
	const form = `{"name": "cni-flannel", "type": "bridge", "mtu": 1472, "ipMasq": false, "isGateway": true,
		"ipam": {"type": "host-local", "ranges": [%s], "routes": [%s]}}`
	for _, tt := range []struct{ name, env, ranges, routes string }{
		{"IPv4", subnetIPv4, `[{"subnet": "10.1.17.0/24"}]`, `{"dst": "10.1.0.0/16"}`},
		{"IPv4 with two networks", subnetTwo, `[{"subnet": "10.1.17.0/24"}]`,
			`{"dst": "10.1.0.0/16"}, {"dst": "192.168.0.0/16"}`},
		{"IPv6", subnetIPv6, `[{"subnet": "fc00::/64"}]`, `{"dst": "fc00::/48"}`},
		{"dual stack", subnetDual, `[{"subnet": "10.1.17.0/24"}], [{"subnet": "fc00::/64"}]`,
			`{"dst": "10.1.0.0/16"}, {"dst": "fc00::/48"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, tt.env)
			want := fmt.Sprintf(form, tt.ranges, tt.routes)
			out := n.must("ADD", "some-container", "eth0", n.conf())
			if !strings.Contains(out, "10.1.17.2/24") {
				t.Errorf("printed %q, want the delegate's result", out)
			}
			sameJSON(t, any(n.delegates.calls[0].conf), want)

			path := filepath.Join(n.dataDir, "some-container")
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			var saved any
			if err := json.Unmarshal(text, &saved); err != nil {
				t.Fatal(err)
			}
			sameJSON(t, saved, want)
			for path, mode := range map[string]os.FileMode{path: 0o600, n.dataDir: 0o700 | os.ModeDir} {
				if info, err := os.Stat(path); err != nil || info.Mode() != mode {
					t.Errorf("%s has mode %v, %v; want %v", path, info.Mode(), err, mode)
				}
			}
			n.must("DEL", "some-container", "eth0", n.conf())
			n.must("DEL", "some-container", "eth0", n.conf())
			n.wantFiles()
			n.wantRan("bridge ADD some-container/eth0", "bridge DEL some-container/eth0")
		})
	}
}

func TestDelegateGetsWhatTheUserSays(t *testing.T) {
	n := newNode(t, strings.ReplaceAll(subnetIPv4, "=true", "=false"))
	n.must("ADD", "c", "eth0", n.conf(`"cniVersion": "1.0.0"`,
		`"delegate": {"bridge": "mynet0", "mtu": 1400, "ipMasq": false, "isGateway": false, "hairpinMode": true,
			"isDefaultGateway": true, "forceAddress": true, "big": 9007199254740993, "runtimeConfig": {"mac": "is replaced"}}`,
		`"runtimeConfig": {"portMappings": [{"hostPort": 80}]}`,
		`"ipam": {"type": "my-ipam", "unknown-param": "unknown-value", "ranges": "is replaced",
			"routes": [{"dst": "10.96.0.0/12"}, {"dst": "192.168.244.0/24", "gw": "10.1.17.20", "mtu": 1300}]}`,
		`"args": "stays here"`))
	sameJSON(t, any(n.delegates.calls[0].conf), `{
		"name": "cni-flannel", "cniVersion": "1.0.0", "type": "bridge", "bridge": "mynet0", "mtu": 1400,
		"ipMasq": false, "isGateway": false, "hairpinMode": true, "isDefaultGateway": true, "forceAddress": true,
		"big": 9007199254740993, "runtimeConfig": {"portMappings": [{"hostPort": 80}]},
		"ipam": {"type": "my-ipam", "unknown-param": "unknown-value", "ranges": [[{"subnet": "10.1.17.0/24"}]],
			"routes": [{"dst": "10.96.0.0/12"}, {"dst": "192.168.244.0/24", "gw": "10.1.17.20", "mtu": 1300},
				{"dst": "10.1.0.0/16"}]}}`)
	if text, err := os.ReadFile(filepath.Join(n.dataDir, "c")); err != nil || !strings.Contains(string(text), "9007199254740993") {
		t.Errorf("saved %s, %v; want the number as it was", text, err)
	}
}

func TestDelegateOfAnotherTypeIsNoGateway(t *testing.T) {
	n := newNode(t, strings.ReplaceAll(subnetIPv4, "=true", "=false"))
	n.must("ADD", "c", "eth0", n.conf(`"delegate": {"type": "ipvlan", "master": "eth0"}`))
	sameJSON(t, any(n.delegates.calls[0].conf), `{
		"name": "cni-flannel", "type": "ipvlan", "master": "eth0", "mtu": 1472, "ipMasq": true,
		"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.17.0/24"}]], "routes": [{"dst": "10.1.0.0/16"}]}}`)
	n.wantRan("ipvlan ADD c/eth0")
}

func TestPathsHaveFlannelsDefaults(t *testing.T) {
	conf, err := parseNetConf([]byte(`{"name": "cni-flannel", "type": "flannel", "delegate": null}`))
	if err != nil || conf.SubnetFile != "/run/flannel/subnet.env" || conf.DataDir != "/var/lib/cni/flannel" {
		t.Errorf("got %+v, %v", conf, err)
	}
}

func TestAddRefusesAConfigurationThatItCannotFollow(t *testing.T) {
	for _, tt := range []struct {
		name, key string
		code      uint
		words     []string
	}{
		{"type no string", `"delegate": {"type": 5}`, types.ErrInvalidNetworkConfig, []string{"delegate.type", "5"}},
		{"type empty", `"delegate": {"type": ""}`, types.ErrInvalidNetworkConfig, []string{"delegate.type"}},
		{"name in delegate", `"delegate": {"name": "x"}`, types.ErrInvalidNetworkConfig, []string{"delegate.name"}},
		{"ipam in delegate", `"delegate": {"ipam": {}}`, types.ErrInvalidNetworkConfig, []string{"delegate.ipam", "beside"}},
		{"delegate no object", `"delegate": "bridge"`, types.ErrDecodingFailure, []string{"delegate"}},
		{"ipam no object", `"ipam": ["host-local"]`, types.ErrDecodingFailure, []string{"ipam"}},
		{"routes no list", `"ipam": {"routes": {"dst": "10.0.0.0/8"}}`, types.ErrInvalidNetworkConfig, []string{"ipam.routes"}},
		{"route no prefix", `"ipam": {"routes": [{"dst": "10.0.0.0"}]}`, types.ErrInvalidNetworkConfig, []string{"ipam.routes", "10.0.0.0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, subnetIPv4)
			_, err := n.call("ADD", "c", "eth0", n.conf(tt.key))
			wantError(t, err, tt.code, tt.words...)
			n.wantFiles()
			n.wantRan()
		})
	}
}

func TestAddNamesWhatIsWrongWithTheSubnetFile(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		words      []string
	}{
		{"other variables", "foo=bar", []string{
			"is missing FLANNEL_NETWORK, FLANNEL_IPV6_NETWORK, FLANNEL_SUBNET, FLANNEL_IPV6_SUBNET, FLANNEL_MTU, FLANNEL_IPMASQ"}},
		{"no equals sign", strings.ReplaceAll(subnetIPv4, "FLANNEL_MTU=1472", "FLANNEL_MTU"), []string{"is missing FLANNEL_MTU"}},
		{"empty", "", []string{"FLANNEL_IPMASQ"}},
		{"bad subnet", strings.ReplaceAll(subnetIPv4, "17.1/24", "17.1"), []string{"FLANNEL_SUBNET", "10.1.17.1"}},
		{"bad network", strings.ReplaceAll(subnetTwo, "192.168.0.0/16", "192.168"), []string{"FLANNEL_NETWORK", "192.168"}},
		{"bad IPv6 network", strings.ReplaceAll(subnetDual, "/48", "/148"), []string{"FLANNEL_IPV6_NETWORK", "148"}},
		{"bad MTU", strings.ReplaceAll(subnetIPv4, "1472", "-1"), []string{"FLANNEL_MTU", "-1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, tt.text)
			_, err := n.call("ADD", "c", "eth0", n.conf())
			wantError(t, err, types.ErrTryAgainLater, append(tt.words, n.subnetFile)...)
			n.wantFiles()
			n.wantRan()
		})
	}
	n := newNode(t, "")
	if err := os.Remove(n.subnetFile); err != nil {
		t.Fatal(err)
	}
	_, err := n.call("ADD", "c", "eth0", n.conf())
	wantError(t, err, types.ErrTryAgainLater, n.subnetFile, "no such file", "log of its pod")
}

func TestFailedAddIsUndone(t *testing.T) {
	n := newNode(t, subnetIPv4)
	n.delegates.fail = map[string]error{"ADD": types.NewError(11, "no address is free", "in 10.1.17.0/24")}
	out, err := n.call("ADD", "c", "eth0", n.conf())
	wantError(t, err, types.ErrTryAgainLater, "delegate bridge ADD: no address is free", "in 10.1.17.0/24")
	if out != "" {
		t.Errorf("printed %q with an error", out)
	}
	n.wantRan("bridge ADD c/eth0", "bridge DEL c/eth0")
	n.wantFiles()
}

func TestFailedAddThatCannotBeUndoneIsLeftToDel(t *testing.T) {
	n := newNode(t, subnetIPv4)
	n.delegates.fail = map[string]error{"ADD": errors.New("exit status 2"), "DEL": errors.New("exit status 3")}
	_, err := n.call("ADD", "c", "eth0", n.conf())
	wantError(t, err, types.ErrInternal, "delegate bridge ADD: exit status 2")
	n.wantFiles("c")
	n.delegates.fail = nil
	n.must("DEL", "c", "eth0", n.conf())
	n.wantFiles()
	n.wantRan("bridge ADD c/eth0", "bridge DEL c/eth0", "bridge DEL c/eth0")
}

func TestAddWithoutTheDelegatesProgramSavesNothing(t *testing.T) {
	n := newNode(t, subnetIPv4)
	n.delegates.none = []string{"bridge"}
	_, err := n.call("ADD", "c", "eth0", n.conf())
	wantError(t, err, types.ErrInvalidNetworkConfig, `"bridge"`, "install it")
	n.wantFiles()
}

func TestAddThatCannotSaveRunsNoDelegate(t *testing.T) {
	n := newNode(t, subnetIPv4)
	if err := os.WriteFile(n.dataDir, nil, 0o600); err != nil { // a file in the directory's place
		t.Fatal(err)
	}
	_, err := n.call("ADD", "c", "eth0", n.conf())
	wantError(t, err, types.ErrIOFailure, n.dataDir, "dataDir")
	n.wantRan()
}
