package remote

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

func TestCommandIsFilledInForTheNode(t *testing.T) {
	n := Node{Addr: netip.MustParseAddr("fd00::2"), Pod: Pod{"kube-flannel", "kube-flannel-ds-x7x"}}
	for text, want := range map[string][]string{
		"ssh root@{node} twill":               {"ssh", "root@fd00::2", "twill", "diag", "-o=-"},
		"  ssh '-oProxyCommand=nc {node} 22'": {"ssh", "-oProxyCommand=nc fd00::2 22", "diag", "-o=-"},
		`x "" {node}'{pod}'`:                  {"x", "", "fd00::2kube-flannel-ds-x7x", "diag", "-o=-"},
		"kubectl":                             {"kubectl", "exec", "-i", "--namespace=kube-flannel", "kube-flannel-ds-x7x", "--container=kube-flannel", "--", "twill", "diag", "-o=-"},
	} {
		v, err := Parse(text)
		testkit.Must(t, err)
		cmd, err := v.Command(t.Context(), n, "diag", "-o=-")
		testkit.Must(t, err)
		if !slices.Equal(cmd.Args, want) {
			t.Errorf("%s: got %q, want %q", text, cmd.Args, want)
		}
	}
}

func TestKubectlAsksTheClusterThatIsNamed(t *testing.T) {
	n := Node{Addr: netip.MustParseAddr("fd00::2"), Pod: Pod{"kube-flannel", "kube-flannel-ds-x7x"}}
	for text, want := range map[string]string{
		"kubectl":                  "kubectl --kubeconfig=/a b exec",
		"kubectl exec {pod} twill": "kubectl exec kube-flannel-ds-x7x",
	} {
		v, err := Parse(text)
		testkit.Must(t, err)
		cmd, err := v.InCluster([]string{"--kubeconfig=/a b"}).Command(t.Context(), n)
		testkit.Must(t, err)
		if got := strings.Join(cmd.Args, " "); !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q, want it to begin with %q", text, got, want)
		}
	}
}

func TestWrongCommandIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"": "empty", "ssh 'root@{node} twill": "without an end", "ssh host twill": "neither {node} nor {pod}",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", text, err, want)
		}
	}
	v, err := Parse("kubectl")
	testkit.Must(t, err)
	if _, err := v.Command(t.Context(), Node{Addr: netip.MustParseAddr("192.0.2.1")}); err == nil || !strings.Contains(err.Error(), "no pod") {
		t.Errorf("a node without a pod: %v", err)
	}
}

func TestLastComplaintExplainsTheError(t *testing.T) {
	var c Complaints
	for range 1000 {
		_, _ = c.Write([]byte("Warning: something long\n"))
	}
	_, _ = c.Write([]byte("Permission denied (publickey)\n"))
	if len(c.text) > maxComplaints {
		t.Errorf("%d bytes are kept", len(c.text))
	}
	if got := c.Explain(testError("exit status 255")).Error(); got != "exit status 255: Permission denied (publickey)" {
		t.Error(got)
	}
}

type testError string

func (e testError) Error() string { return string(e) }
