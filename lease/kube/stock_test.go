//go:build !nokube

package kube_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/twillnet/twill/internal/lab/kubetest"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/lease"
	"github.com/twillnet/twill/lease/kube"
)

// TestKubeAnnotationsAreThoseThatStockFlannelWrites has stock's own subnet manager
// annotate a node, and a store of ours another with the same attributes. Then ours
// takes stock's over, and has nothing to change.
func TestKubeAnnotationsAreThoseThatStockFlannelWrites(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("stock flannel is built for amd64 alone")
	}
	stock := filepath.Join("..", "..", "bin", "peers", "flannel-annotate")
	if _, err := os.Stat(stock); err != nil {
		t.Fatal("flannel-annotate is not built: run make peers in the root of the repository")
	}
	c := kubetest.Start(t, kubetest.Options{})
	kubeconfig := c.Kubeconfig(kubetest.FlannelToken)
	v4, v6 := netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("2001:db8::11")
	data, v6Data := json.RawMessage(`{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e3"}`), json.RawMessage(`{"VNI":1,"VtepMAC":"12:c6:65:89:b4:e6"}`)
	const dual, ipv6 = `{"EnableIPv6": true, "Network": "10.244.0.0/16", "IPv6Network": "fd00:244::/48"}`, `{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fd00:244::/48"}`
	for i, tt := range []struct {
		name, config string
		attrs        lease.Attrs
		overwrite    string
	}{
		{"vxlan", netConf, lease.Attrs{PublicIP: v4, BackendType: "vxlan", BackendData: data}, ""},
		{"vxlan-dual", dual, lease.Attrs{PublicIP: v4, PublicIPv6: v6, BackendType: "vxlan", BackendData: data, BackendV6Data: v6Data}, ""},
		{"vxlan-ipv6", ipv6, lease.Attrs{PublicIPv6: v6, BackendType: "vxlan", BackendV6Data: v6Data}, ""},
		{"host-gw", netConf, lease.Attrs{PublicIP: v4, BackendType: "host-gw"}, ""},
		{"host-gw-dual", dual, lease.Attrs{PublicIP: v4, PublicIPv6: v6, BackendType: "host-gw"}, ""},
		{"host-gw-ipv6", ipv6, lease.Attrs{PublicIPv6: v6, BackendType: "host-gw"}, ""},
		{"udp", netConf, lease.Attrs{PublicIP: v4}, ""},
		{"overwritten", netConf, lease.Attrs{PublicIP: v4, BackendType: "vxlan", BackendData: data}, "203.0.113.5"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cidrs := []string{fmt.Sprintf("10.244.%d.0/24", i), fmt.Sprintf("fd00:244:0:%d::/64", i)}
			user := map[string]string{"example.com/any": ""} // stock panics at a node without annotations
			if tt.overwrite != "" {
				user[prefix+"public-ip-overwrite"] = tt.overwrite
			}
			c.AddAnnotatedNode("stock-"+tt.name, user, cidrs...)
			c.AddAnnotatedNode("ours-"+tt.name, user, cidrs...)
			path := filepath.Join(t.TempDir(), "net-conf.json")
			testkit.Must(t, os.WriteFile(path, []byte(tt.config), 0o600))
			attrs, err := lease.EncodeAttrs(tt.attrs)
			testkit.Must(t, err)
			cmd := exec.Command(stock, kubeconfig, path, string(attrs))
			cmd.Env = append(os.Environ(), "NODE_NAME=stock-"+tt.name)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			acquire := func(node string) {
				t.Helper()
				s := open(t, c, func(o *kube.Options) { o.Node, o.ConfigFile = node, path })
				_, err := s.Acquire(t.Context(), tt.attrs, lease.Previous{})
				testkit.Must(t, err)
			}
			acquire("ours-" + tt.name)
			want, got := c.Node("stock-"+tt.name).OurAnnotations(prefix), c.Node("ours-"+tt.name).OurAnnotations(prefix)
			if !maps.Equal(got, want) {
				t.Errorf("ours are\n%v, stock's\n%v", got, want)
			}
			before := c.ResourceVersion("stock-" + tt.name)
			acquire("stock-" + tt.name)
			if after := c.ResourceVersion("stock-" + tt.name); after != before {
				t.Errorf("taking over from stock has changed %v", c.Node("stock-"+tt.name))
			}
		})
	}
}
