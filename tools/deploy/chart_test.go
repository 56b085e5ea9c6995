package deploy

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

func TestChartMakesWhatTheManifestHas(t *testing.T) {
	manifest, chart := kustomized(t, "."), installed(t, "")
	for _, name := range []string{"ClusterRole/flannel", "ClusterRoleBinding/flannel"} {
		for _, key := range []string{"rules", "roleRef", "subjects"} {
			same(t, name+" "+key, chart[name][key], manifest[name][key])
		}
	}
	for _, key := range []string{"initContainers", "volumes", "affinity", "hostNetwork", "priorityClassName", "serviceAccountName"} {
		same(t, key, chart.pod(key), manifest.pod(key))
	}
	for _, key := range []string{"image", "ports", "livenessProbe", "readinessProbe", "resources", "securityContext", "volumeMounts"} {
		same(t, key, chart.pod("containers", 0, key), manifest.pod("containers", 0, key))
	}
	same(t, "command", chart.pod("containers", 0, "command"),
		[]any{"/opt/bin/flanneld", "--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"})
	same(t, "cni-conf.json", at(chart["ConfigMap/kube-flannel-cfg"], "data", "cni-conf.json"),
		strings.TrimSuffix(at(manifest["ConfigMap/kube-flannel-cfg"], "data", "cni-conf.json").(string), "\n")+"\n")
}

func TestNetConf(t *testing.T) {
	for _, tt := range []struct{ name, values, want string }{
		{"defaults", "", `{"Network": "10.244.0.0/16", "Backend": {"Type": "auto"}}`},
		{"vxlan", "podCidr: 10.42.0.0/16\nflannel: {backend: vxlan, backendPort: 4789, vni: 4096, mtu: 1400, GBP: true, directRouting: true}",
			`{"Network": "10.42.0.0/16", "Backend": {"Type": "vxlan", "Port": 4789, "VNI": 4096, "MTU": 1400, "GBP": true, "DirectRouting": true}}`},
		{"dual stack, nftables", "podCidrv6: fd00::/48\nflannel: {backend: host-gw, enableNFTables: true}",
			`{"Network": "10.244.0.0/16", "IPv6Network": "fd00::/48", "EnableIPv6": true, "EnableNFTables": true, "Backend": {"Type": "host-gw"}}`},
		{"IPv6", "podCidr: \"\"\npodCidrv6: fd00::/48", `{"EnableIPv4": false, "IPv6Network": "fd00::/48", "EnableIPv6": true, "Backend": {"Type": "auto"}}`},
		{"udp", "flannel: {backend: udp, backendPort: 8286, vni: 7}", `{"Network": "10.244.0.0/16", "Backend": {"Type": "udp", "Port": 8286}}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := at(installed(t, tt.values)["ConfigMap/kube-flannel-cfg"], "data", "net-conf.json").(string)
			var got, want any
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			if err := json.Unmarshal([]byte(tt.want), &want); err != nil {
				t.Fatal(err)
			}
			same(t, "net-conf.json", got, want)
		})
	}
}

// The tests of flannel's chart, and the values that it has no test of.
func TestValuesOfFlannelsChart(t *testing.T) {
	o := installed(t, `
global: {imagePullSecrets: [{name: a-test-secret}]}
flannel:
  image: {repository: registry.example.com/twill, tag: v555.44.3}
  flannel_cni: {image: {repository: registry.example.com/plugin, tag: v777.66.5}}
  cniBinDir: /usr/lib/cni
  cniConfDir: /etc/cni/other.d
  skipCNIConfigInstallation: true
  args: [--ip-masq, --kube-subnet-mgr, "--iface=eth1"]
  healthz: {port: 0}
  resources: {limits: {memory: 100Mi}}
  tolerations: [{key: a, operator: Exists}]
  nodeSelector: {eks.amazonaws.com/compute-type: hybrid}
`)
	same(t, "secrets", o.pod("imagePullSecrets"), []any{map[string]any{"name": "a-test-secret"}})
	same(t, "image", o.pod("containers", 0, "image"), "registry.example.com/twill:v555.44.3")
	same(t, "image of the plugin", o.pod("initContainers", 0, "image"), "registry.example.com/plugin:v777.66.5")
	same(t, "init containers", o.names("initContainers"), []string{"install-cni-plugin"})
	same(t, "command", o.pod("containers", 0, "command"), []any{"/opt/bin/flanneld", "--ip-masq", "--kube-subnet-mgr", "--iface=eth1"})
	for _, key := range []string{"ports", "livenessProbe", "readinessProbe"} {
		same(t, key+" without health checks", o.pod("containers", 0, key), nil)
	}
	same(t, "plugins' directory", o.pod("volumes", 1, "hostPath", "path"), "/usr/lib/cni")
	same(t, "configuration's directory", o.pod("volumes", 2, "hostPath", "path"), "/etc/cni/other.d")
	same(t, "memory", o.pod("containers", 0, "resources", "limits", "memory"), "100Mi")
	same(t, "tolerations", o.pod("tolerations"), []any{map[string]any{"key": "a", "operator": "Exists"}})
	same(t, "node selector", o.pod("nodeSelector"), map[string]any{"eks.amazonaws.com/compute-type": "hybrid"})
}

func TestNetworkPolicyIsASecondContainer(t *testing.T) {
	o := installed(t, `
netpol: {enabled: true, args: ["--v=4"], image: {repository: registry.example.com/netpol, tag: v1}}
`)
	same(t, "containers", o.names("containers"), []string{"kube-flannel", "kube-network-policies"})
	same(t, "image", o.pod("containers", 1, "image"), "registry.example.com/netpol:v1")
	same(t, "command", o.pod("containers", 1, "command"), []any{"/bin/netpol", "--v=4"})
	rules, _ := at(o["ClusterRole/flannel"], "rules").([]any)
	if len(rules) != 7 {
		t.Errorf("the role has %d rules, want those of the policies too", len(rules))
	}
}

func TestLabelsAndAnnotationsAreOnAllObjects(t *testing.T) {
	o := installed(t, `
labels: {team: network, app: is not replaced}
annotations: {note: "yes"}
podLabels: {app: is not replaced, tier: neither, zone: a}
podAnnotations: {scrape: "true"}
installPlugins: true
`)
	for name, x := range o {
		same(t, name+": app", at(x, "metadata", "labels", "app"), "flannel")
		same(t, name+": team", at(x, "metadata", "labels", "team"), "network")
		same(t, name+": note", at(x, "metadata", "annotations", "note"), "yes")
	}
	pod := at(o["DaemonSet/kube-flannel-ds"], "spec", "template", "metadata")
	same(t, "the pods' metadata", pod, map[string]any{
		"labels": map[string]any{"app": "flannel", "tier": "node", "zone": "a"}, "annotations": map[string]any{"scrape": "true"},
	})
	same(t, "init containers", o.names("initContainers"), []string{"install-cni-plugin", "install-other-plugins", "install-cni"})
}

func TestKernelPathHasTheHostsBPFFileSystem(t *testing.T) {
	for _, tt := range []struct{ how, flag string }{{"chart", "--kernel-path=tc"}, {"overlay", ""}} {
		o := kustomized(t, "overlays/kernel-path")
		if tt.how == "chart" {
			o = installed(t, "kernelPath: tc")
			command, _ := o.pod("containers", 0, "command").([]any)
			if !slices.Contains(command, any(tt.flag)) {
				t.Errorf("chart: the command is %q", command)
			}
		} else {
			env, _ := o.pod("containers", 0, "env").([]any)
			same(t, "the variable", env[0], map[string]any{"name": "FLANNELD_KERNEL_PATH", "value": "auto"})
		}
		same(t, tt.how+": privileged", o.pod("containers", 0, "securityContext", "privileged"), true)
		mounts, _ := o.pod("containers", 0, "volumeMounts").([]any)
		if !slices.ContainsFunc(mounts, func(m any) bool { return at(m, "mountPath") == "/sys/fs/bpf" }) {
			t.Errorf("%s: mounts are %v", tt.how, mounts)
		}
		if !slices.Contains(o.names("volumes"), "bpf") {
			t.Errorf("%s: volumes are %v", tt.how, o.names("volumes"))
		}
	}
	same(t, "privileged without", installed(t, "").pod("containers", 0, "securityContext", "privileged"), false)
}

func TestBadValuesAreRefusedByName(t *testing.T) {
	for _, tt := range []struct{ values, names string }{
		{"flannel: {backend: wireguard}", "backend"},
		{"flannel: {backendPort: 70000}", "backendPort"},
		{"flannel: {vni: 16777216}", "vni"},
		{"flannel: {bakend: vxlan}", "bakend"},
		{"podCIDR: 10.0.0.0/8", "podCIDR"},
		{"podCidr: 10.0.0.0", "podCidr"},
		{"podCidr: ''", "podCidr"},
		{"flannel: {cniBinDir: opt}", "cniBinDir"},
		{"labels: {a: 1}", "labels"},
		{"kernelPath: xdp", "kernelPath"},
	} {
		if _, err := helm(true, chartDir, tt.values); err == nil || !strings.Contains(err.Error(), tt.names) {
			t.Errorf("%s: %v, want %s in an error", tt.values, err, tt.names)
		}
	}
}
