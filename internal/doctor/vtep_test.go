package doctor

import (
	"encoding/json"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

// TestNodesWithOneVTEPAddressAreNamed: a device that was kept after the node's address
// had changed, or a cloned machine.
func TestNodesWithOneVTEPAddressAreNamed(t *testing.T) {
	p := newPatient(t, nil)
	data := func(vni, mac string) json.RawMessage {
		return json.RawMessage(`{"VNI":` + vni + `,"VtepMAC":"` + mac + `"}`)
	}
	p.x.Leases[0].BackendData = data("1", "02:00:00:00:00:01")
	p.x.Leases[1].BackendData = data("1", "02:00:00:00:00:02")
	p.x.Leases[1].BackendV6Data = data("1", "02:00:00:00:00:01") // of another device
	p.isWell("store")
	p.x.Leases[1].BackendData = data("2", "02:00:00:00:00:01") // of another VXLAN
	p.isWell("store")
	p.x.Leases[1].BackendData = data("1", "02:00:00:00:00:01")
	p.has("store", Bad, "leases 10.5.1.0-24 of 192.0.2.1 and 10.5.2.0-24 of 192.0.2.2 both have the VtepMAC 02:00:00:00:00:01 for flannel.1")
	p.x.Leases[1].BackendData = json.RawMessage(`"VNI"`)
	p.isWell("store")
}

// TestLeaseThatAnotherNodeWritesIsFound: two nodes have one public address, such as
// that of a NAT, and so one lease.
func TestLeaseThatAnotherNodeWritesIsFound(t *testing.T) {
	p := newPatient(t, netlabtest.Namespace(t, "node"))
	p.x.Leases[0].BackendData = json.RawMessage(`{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`)
	p.isWell("lease") // without a device there is nothing to compare
	p.run("ip link add flannel.1 address 02:00:00:00:00:01 type vxlan id 1 dev lo dstport 8472")
	p.isWell("lease")
	p.run("ip link set flannel.1 address 02:00:00:00:00:02")
	p.has("lease", Bad, "lease 10.5.1.0-24 has the VtepMAC 02:00:00:00:00:01, but flannel.1 of this node has 02:00:00:00:00:02: either another node has the same public address 192.0.2.1")
}
