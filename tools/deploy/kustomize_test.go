package deploy

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// upstream are the objects of flannel's manifest. Applied over it, ours must
// replace each, or two daemons run on a node.
var upstream = []string{
	"ClusterRole/flannel", "ClusterRoleBinding/flannel", "ConfigMap/kube-flannel-cfg", "DaemonSet/kube-flannel-ds",
	"Namespace/kube-flannel", "ServiceAccount/flannel",
}

func TestManifestHasTheNamesOfFlannels(t *testing.T) {
	o := kustomized(t, ".")
	if got := slices.Sorted(maps.Keys(o)); !slices.Equal(got, upstream) {
		t.Errorf("got %q, want %q", got, upstream)
	}
	for name, x := range o {
		if ns := at(x, "metadata", "namespace"); ns != nil && ns != "kube-flannel" {
			t.Errorf("%s is in the namespace %v", name, ns)
		}
	}
	same(t, "the selector, which cannot be changed later",
		at(o["DaemonSet/kube-flannel-ds"], "spec", "selector"), map[string]any{"matchLabels": map[string]any{"app": "flannel"}})
	same(t, "init containers", o.names("initContainers"), []string{"install-cni-plugin", "install-cni"})
	same(t, "containers", o.names("containers"), []string{"kube-flannel"})
	same(t, "volumes", o.names("volumes"), []string{"run", "cni-plugin", "cni", "flannel-cfg", "xtables-lock"})
	same(t, "arguments", o.pod("containers", 0, "args"), []any{"--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"})
	if p := o.pod("containers", 0, "securityContext", "privileged"); p != false {
		t.Errorf("privileged is %v", p)
	}
	for _, key := range []string{"cni-conf.json", "net-conf.json"} {
		if at(o["ConfigMap/kube-flannel-cfg"], "data", key) == nil {
			t.Errorf("the ConfigMap has no %s", key)
		}
	}
}

func TestManifestAsksForTheRightsOfFlannelsAndToRecordEvents(t *testing.T) {
	same(t, "the role", at(kustomized(t, ".")["ClusterRole/flannel"], "rules"), []any{
		map[string]any{"apiGroups": []any{""}, "resources": []any{"pods"}, "verbs": []any{"get"}},
		map[string]any{"apiGroups": []any{""}, "resources": []any{"nodes"}, "verbs": []any{"get", "list", "watch"}},
		map[string]any{"apiGroups": []any{""}, "resources": []any{"nodes/status"}, "verbs": []any{"patch"}},
		map[string]any{"apiGroups": []any{""}, "resources": []any{"events"}, "verbs": []any{"create", "patch"}},
	})
}

func TestOverlaysChangeOnlyWhatTheyAreFor(t *testing.T) {
	base := kustomized(t, ".")
	for _, tt := range []struct {
		dir             string
		limits, plugins bool
	}{{"overlays/boards", true, false}, {"overlays/k3s", false, true}, {"overlays/k3s-boards", true, true}, {"overlays/kernel-path", false, false}} {
		t.Run(tt.dir, func(t *testing.T) {
			o := kustomized(t, tt.dir)
			limit, _ := o.pod("containers", 0, "resources", "limits", "memory").(string)
			if (limit != "") != tt.limits {
				t.Errorf("the memory limit is %q", limit)
			}
			if got := slices.Contains(o.names("initContainers"), "install-other-plugins"); got != tt.plugins {
				t.Errorf("init containers are %q", o.names("initContainers"))
			}
			for _, name := range upstream {
				if !strings.HasPrefix(name, "DaemonSet/") {
					same(t, name, o[name], base[name])
				}
			}
			// The user's image goes into all containers.
			for _, list := range []string{"initContainers", "containers"} {
				for i := range o.names(list) {
					if image := o.pod(list, i, "image"); image != "localhost/twill:dev" {
						t.Errorf("%s %d has the image %v, which a transformer would miss", list, i, image)
					}
				}
			}
		})
	}
}
