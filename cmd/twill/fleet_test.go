package main

import (
	"bytes"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/remote"
)

// TestKubectlRunsTwillInThePodOfEachNode: pods of a DaemonSet have the address of their
// node, and names that nothing else has.
func TestKubectlRunsTwillInThePodOfEachNode(t *testing.T) {
	const pods = `{"items": [{"metadata": {"name": "kube-flannel-ds-x7x", "namespace": "kube-flannel"}, "status": {"hostIP": "192.0.2.1", "hostIPs": [{"ip": "192.0.2.1"}, {"ip": "fd00::1"}]}}]}`
	for cluster, access := range map[string]string{"--kube-subnet-mgr": "", "--kubeconfig-file=/etc/admin.conf": "--kubeconfig=/etc/admin.conf "} {
		arguments := putKubectl(t, "case \"$*\" in\n*'get nodes'*) "+printing(twoNodes)+"\n;;\n*'get pods'*) "+printing(pods)+"\n;;\n"+
			`*exec*) read start; echo '{"hello": {"protocol": 1}}'; read test; echo '{"done": true}'; cat >/dev/null;;`+"\nesac")
		var out bytes.Buffer
		testkit.Must(t, program.Run(t.Context(), away("connectivity", cluster, "--via=kubectl"), &out, &bytes.Buffer{}))
		if want := "1 nodes, tested from 1 of them, 0 paths: 0 of 0 tests passed"; !strings.HasPrefix(out.String(), want) {
			t.Errorf("got %s, want it to begin with %q", out.String(), want)
		}
		asked, err := os.ReadFile(arguments)
		testkit.Must(t, err)
		for _, want := range []string{
			"get pods --all-namespaces --selector=app=flannel --field-selector=status.phase=Running --output=json\n",
			"exec -i --namespace=kube-flannel kube-flannel-ds-x7x --container=kube-flannel -- twill connectivity --part\n",
		} {
			if !strings.Contains("\n"+string(asked), "\n"+access+want) {
				t.Errorf("%s: kubectl was called with\n%s, want %q among it", cluster, asked, access+want)
			}
		}
	}
}

func TestNodesAreChosenByAddressOrPrefix(t *testing.T) {
	var all []member
	for _, a := range []string{"192.0.2.1", "192.0.2.2", "192.0.2.77", "fd00::1"} {
		all = append(all, member{Node: remote.Node{Addr: netip.MustParseAddr(a)}})
	}
	for list, want := range map[string]string{
		"": "192.0.2.1 192.0.2.2 192.0.2.77 fd00::1", "192.0.2.2": "192.0.2.2", "192.0.2.64/26, fd00::1": "192.0.2.77 fd00::1",
		"192.0.2.0/24,192.0.2.1": "192.0.2.1 192.0.2.2 192.0.2.77",
	} {
		chosen, err := selected(all, list)
		testkit.Must(t, err)
		var got []string
		for _, m := range chosen {
			got = append(got, m.Addr.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("--nodes=%s: %v, want %s", list, got, want)
		}
	}
	for list, want := range map[string]string{"node-1": "neither an address nor a prefix", "192.0.2.9": "no node with a lease is at 192.0.2.9", ",": "neither"} {
		if _, err := selected(all, list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("--nodes=%s: %v, want an error with %q", list, err, want)
		}
	}
}

func TestWrongCommandLinesOfConnectivity(t *testing.T) {
	for want, args := range map[string][]string{
		"neither {node} nor {pod}":   {"--via=ssh twill"},
		"-W 0s: want more than 0":    {"-W=0s"},
		"--parallel 0":               {"--parallel=0"},
		"--port 70000: want 1":       {"--port=70000"},
		`unexpected argument "node"`: {"node"},
	} {
		err := program.Run(t.Context(), append([]string{"connectivity", "--socket=/nonexistent"}, args...), &bytes.Buffer{}, &bytes.Buffer{})
		if usage := new(command.UsageError); !errors.As(err, &usage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: got %v, want a usage error with %q", args, err, want)
		}
	}
}
