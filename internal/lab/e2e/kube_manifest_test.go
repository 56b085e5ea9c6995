package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twillnet/twill/internal/lab/kubetest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// kubectl runs kubectl as the cluster's administrator, in the root of the
// repository.
func kubectl(t testing.TB, kubeconfig string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, kubetest.Binary(t, "kubectl"), args...)
	cmd.Dir = filepath.Join("..", "..", "..")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig, "HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// The manifest is applied over a flannel: the same, with another image. The overlays
// are applied one over the other, as by users who change their minds.
func TestKubeManifestIsAppliedOverFlannelsAndAccepted(t *testing.T) {
	t.Parallel()
	c := kubetest.Start(t, kubetest.Options{})
	admin := c.Kubeconfig("admin")
	must := func(args ...string) string {
		t.Helper()
		out, err := kubectl(t, admin, args...)
		if err != nil {
			t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	const images = "jsonpath={.spec.template.spec.initContainers[*].image} {.spec.template.spec.containers[*].image}"
	must("apply", "-k", "deploy/kubernetes")
	daemonSet := []string{"-n", "kube-flannel", "get", "daemonset/kube-flannel-ds", "-o"}
	must("-n", "kube-flannel", "set", "image", "daemonset/kube-flannel-ds",
		"kube-flannel=flannel:v1", "install-cni=flannel:v1", "install-cni-plugin=flannel-cni-plugin:v1")
	if got, want := must(append(daemonSet, images)...), "flannel-cni-plugin:v1 flannel:v1 flannel:v1"; got != want {
		t.Fatalf("after kubectl set image the images are %q, want %q", got, want)
	}
	uid := must(append(daemonSet, "jsonpath={.metadata.uid}")...)
	for _, dir := range []string{"", "/overlays/boards", "/overlays/k3s", "/overlays/k3s-boards", "/overlays/kernel-path", ""} {
		out := must("apply", "--validate=strict", "-k", "deploy/kubernetes"+dir)
		if strings.Contains(out, "arning") {
			t.Errorf("deploy/kubernetes%s: the API server warns:\n%s", dir, out)
		}
		for _, image := range strings.Fields(must(append(daemonSet, images)...)) {
			if image != imageName {
				t.Errorf("deploy/kubernetes%s keeps the image %s", dir, image)
			}
		}
		if now := must(append(daemonSet, "jsonpath={.metadata.uid}")...); now != uid {
			t.Errorf("deploy/kubernetes%s creates another DaemonSet", dir)
		}
	}
	must("-n", "kube-flannel", "rollout", "history", "daemonset/kube-flannel-ds")

	// The change back.
	c.AddAnnotatedNode("node-a", map[string]string{"flannel.alpha.coreos.com/twill": "{}", "flannel.alpha.coreos.com/public-ip": "172.31.9.11"})
	must("annotate", "nodes", "--all", "flannel.alpha.coreos.com/twill-")
	if got := c.Node("node-a").OurAnnotations("flannel.alpha.coreos.com/"); len(got) != 1 {
		t.Errorf("the remaining annotations are %v, want all but twill's own", got)
	}
	must("delete", "--wait=false", "-k", "deploy/kubernetes")
}

// What the daemon requests from the API, and what its pod may not do.
func TestKubeManifestGrantsWhatTheDaemonNeedsAndNoMore(t *testing.T) {
	t.Parallel()
	c := kubetest.Start(t, kubetest.Options{})
	c.Revoke() // the rights that other tests run with
	admin := c.Kubeconfig("admin")
	out, err := kubectl(t, admin, "apply", "-k", "deploy/kubernetes")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, tt := range []struct {
		do   string
		want string
	}{
		{"get pods -n kube-flannel", "yes"},
		{"get nodes", "yes"},
		{"list nodes", "yes"},
		{"watch nodes", "yes"},
		{"patch nodes --subresource=status", "yes"},
		{"create events", "yes"},
		{"patch events", "yes"},
		{"patch nodes", "no"},
		{"update nodes --subresource=status", "no"},
		{"delete nodes", "no"},
		{"list pods -A", "no"},
		{"list events -A", "no"},
		{"get secrets -n kube-flannel", "no"},
	} {
		var got string
		// RBAC is looked up in a cache that follows.
		if !testkit.Within(testkit.Patience, func() bool {
			got, _ = kubectl(t, admin, append([]string{"auth", "can-i", "--as=system:serviceaccount:kube-flannel:flannel"}, strings.Fields(tt.do)...)...)
			lines := strings.Fields(got)
			return len(lines) > 0 && lines[len(lines)-1] == tt.want
		}) {
			t.Errorf("may the daemon %s? %s, want %s", tt.do, got, tt.want)
		}
	}
}
