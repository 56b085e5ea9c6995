package deploy

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

// flannelDir is the source of the release of flannel that tests compare with.
func flannelDir(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("go", "mod", "download", "-json", "github.com/flannel-io/flannel")
	cmd.Dir = "../../bench/peers/flannel"
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go mod download: %v\n%s", err, out)
	}
	var module struct{ Dir string }
	if err := json.Unmarshal(out, &module); err != nil {
		t.Fatal(err)
	}
	return module.Dir
}

// comparable takes out of the pods what one of the charts has alone: ours a right for
// /dev/net/tun, flannel's two variables that twill does not need.
func (o objects) comparable(t *testing.T) {
	t.Helper()
	daemon, _ := o.pod("containers", 0).(map[string]any)
	if daemon == nil {
		t.Fatal("there is no daemon")
	}
	capabilities := at(daemon, "securityContext", "capabilities").(map[string]any)
	capabilities["add"] = slices.DeleteFunc(capabilities["add"].([]any), func(c any) bool { return c == "MKNOD" })
	daemon["env"] = slices.DeleteFunc(daemon["env"].([]any), func(e any) bool {
		return at(e, "name") == "EVENT_QUEUE_DEPTH" || at(e, "name") == "CONT_WHEN_CACHE_NOT_READY"
	})
}

// A release of flannel's chart is upgraded to ours with the values that it has. The
// ClusterRole is not compared: flannel's chart asks for more than its manifest.
func TestChartMakesOfFlannelsValuesWhatFlannelsDoes(t *testing.T) {
	theirs := filepath.Join(flannelDir(t), "chart", "kube-flannel")
	defaults, err := os.ReadFile(filepath.Join(theirs, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, values string }{
		{"flannel's defaults", ""},
		{"vxlan", "flannel: {backend: vxlan, backendPort: 4789, vni: 4096, mtu: 1400, GBP: true, directRouting: true}"},
		{"vxlan with a MAC prefix for Windows", "flannel: {backend: vxlan, macPrefix: 0E-2A}"},
		{"udp", "flannel: {backend: udp, backendPort: 8286}"},
		{"host-gw, dual stack, nftables", "podCidrv6: fd00::/48\nflannel: {backend: host-gw, enableNFTables: true}"},
		{"IPv6", "podCidr: \"\"\npodCidrv6: fd00::/48"},
		{"another registry", "global: {imagePullSecrets: [{name: s}]}\nflannel: {image: {repository: r.example.com/f, tag: v1}, flannel_cni: {image: {repository: r.example.com/c, tag: v2}}}"},
		{"other paths", "flannel: {cniBinDir: /usr/lib/cni, cniConfDir: /etc/cni/other.d, skipCNIConfigInstallation: true}"},
		{"scheduling", "flannel: {resources: {limits: {memory: 100Mi}}, tolerations: [{key: a, operator: Exists}], nodeSelector: {a: b}}"},
		{"arguments", "flannel: {args: [--ip-masq, --kube-subnet-mgr, --iface=eth1], healthz: {port: 0}}"},
		{"network policies", "netpol: {enabled: true}"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			made := func(chart string) objects {
				files, err := helm(false, chart, string(defaults), tt.values)
				return parsed(t, files, err)
			}
			want, got := made(theirs), made(chartDir)
			want.comparable(t)
			got.comparable(t)
			for name, o := range want {
				for _, part := range []string{"spec", "roleRef", "subjects"} {
					same(t, name+" "+part, at(got[name], part), at(o, part))
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d objects, flannel's chart makes %d", len(got), len(want))
			}
			const config = "ConfigMap/kube-flannel-cfg"
			same(t, "cni-conf.json", at(got[config], "data", "cni-conf.json"), at(want[config], "data", "cni-conf.json"))
			if g, w := netConf(t, got), netConf(t, want); !reflect.DeepEqual(g, w) {
				t.Errorf("net-conf.json is %v, flannel's %v", g, w)
			}
		})
	}
}

// netConf returns the network configuration, without what only nodes of Windows read.
func netConf(t *testing.T, o objects) (c map[string]any) {
	t.Helper()
	defer func() { delete(c["Backend"].(map[string]any), "MacPrefix") }()
	if err := json.Unmarshal([]byte(at(o["ConfigMap/kube-flannel-cfg"], "data", "net-conf.json").(string)), &c); err != nil {
		t.Fatal(err)
	}
	return c
}
