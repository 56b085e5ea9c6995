package e2e

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/kubetest"
	"github.com/twillnet/twill/internal/lab/testkit"
)

// pod-a ── host a ─┬──────── host b ── pod-b
//
//	twill on host a  └── kube-apiserver; and twill by kubectl, with a kubeconfig
func TestKubeCommandsOfTwill(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	l := newKubeLab(t, 2, `{"Type": "vxlan"}`)
	l.start()
	for i := range l.daemons {
		l.sees(i, 2)
	}
	l.Do(http.MethodPost, "/api/v1/namespaces", map[string]any{"metadata": map[string]any{"name": "kube-flannel"}}, nil)
	l.Do(http.MethodPost, "/api/v1/namespaces/kube-flannel/configmaps", map[string]any{
		"metadata": map[string]any{"name": "kube-flannel-cfg"}, "data": map[string]any{"net-conf.json": `{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}}`},
	}, nil)
	twill := func(host int, args ...string) (stdout, stderr string, err error) {
		cmd := l.Hosts[host].NS.Command(context.Background(), bin("twill"), args...)
		// Commands on a node have no kubectl: they query its twilld.
		path := t.TempDir()
		if host == 2 {
			path = filepath.Dir(kubetest.Binary(t, "kubectl"))
		} else {
			testkit.Must(t, os.WriteFile(filepath.Join(path, "kubectl"), []byte("#!/bin/sh\necho no kubectl here >&2; exit 1\n"), 0o755))
		}
		cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "PATH="+path+":"+os.Getenv("PATH"))
		var out, complaints bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &complaints
		err = cmd.Run()
		return out.String(), complaints.String(), err
	}
	says := func(host int, args, want []string) {
		t.Helper()
		out, complaints, err := twill(host, args...)
		for _, w := range want {
			if !strings.Contains(testkit.Unwrapped(out+complaints), w) {
				t.Errorf("twill %s: %v, does not print %q but\n%s%s", strings.Join(args, " "), err, w, out, complaints)
			}
		}
	}
	socket := "--socket=" + l.daemons[0].socket
	admin := []string{"--socket=/nowhere", "--kubeconfig-file=" + l.KubeconfigOf("token: admin"), "--net-config-path=/nowhere/net-conf.json"}
	both := []string{l.Hosts[0].Subnet.String(), l.Hosts[1].Subnet.String(), l.Hosts[1].Addr.String(), "vxlan", "with the node"}
	says(0, []string{"leases", socket}, append(both, "(this node)"))
	says(2, append([]string{"leases"}, admin...), both)
	says(0, []string{"config", "get", socket}, []string{`"Network": "10.5.0.0/16"`})
	says(2, append([]string{"config", "get"}, admin...), []string{`"Network": "10.5.0.0/16"`})
	says(0, []string{"doctor", socket, "--subnet-file=" + l.daemons[0].subnetFile}, []string{"it answers; the network config and 2 leases are valid"})
	says(0, []string{"reserve", socket, "10.5.9.0/24"}, []string{"the leases are in Kubernetes", "kube-flannel-cfg"})
	says(0, []string{"config", "set", socket, os.DevNull}, []string{"network config"})

	l.Revoke()
	says(0, []string{"leases", socket}, []string{"cannot list resource", "ClusterRole flannel"})
	says(0, []string{"doctor", socket}, []string{"ClusterRole flannel"})
	says(2, []string{"leases", "--socket=/nowhere", "--kubeconfig-file=" + l.Kubeconfig(kubetest.FlannelToken) + ".gone"}, []string{"no such file"})
}
