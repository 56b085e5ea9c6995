package cni

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

func TestCheckAsksTheDelegate(t *testing.T) {
	n := newNode(t, subnetDual)
	n.must("ADD", "c", "eth0", n.conf(`"cniVersion": "1.0.0"`))
	n.ran()
	check := n.conf(`"cniVersion": "1.1.0"`, `"prevResult": {"cniVersion": "1.1.0", "ips": []}`)
	n.must("CHECK", "c", "eth0", check)
	call := n.delegates.calls[0]
	if call.conf["prevResult"] == nil || call.conf["cniVersion"] != "1.1.0" || call.conf["mtu"] != 1472. {
		t.Errorf("the delegate got %v, want what ADD saved with the previous result", call.conf)
	}
	n.wantRan("bridge CHECK c/eth0")
	n.delegates.fail = map[string]error{"CHECK": errors.New("no link")}
	_, err := n.call("CHECK", "c", "eth0", check)
	wantError(t, err, types.ErrInternal, "delegate bridge CHECK: no link")
	n.wantFiles("c")
}

func TestCheckOfWhatIsNotAttached(t *testing.T) {
	n := newNode(t, subnetIPv4)
	n.must("ADD", "c", "eth0", n.conf())
	_, err := n.call("CHECK", "c", "net1", n.conf())
	wantError(t, err, types.ErrUnknownContainer, "container c, interface net1", n.dataDir)
	n.put("c", "{")
	_, err = n.call("CHECK", "c", "eth0", n.conf())
	wantError(t, err, types.ErrIOFailure, n.dataDir+"/c is damaged")
}

func TestCheckFindsAPodOfAnEarlierSubnet(t *testing.T) {
	n := newNode(t, subnetDual)
	n.must("ADD", "c", "eth0", n.conf())
	n.setSubnet(strings.ReplaceAll(subnetDual, "fc00::1/64", "fc00:0:0:7::1/64"))
	n.ran()
	_, err := n.call("CHECK", "c", "eth0", n.conf())
	wantError(t, err, types.ErrInvalidNetworkConfig, "fc00::/64", "fc00:0:0:7::/64", "delete the pod")
	n.wantRan()
	if err := os.Remove(n.subnetFile); err != nil {
		t.Fatal(err)
	}
	_, err = n.call("CHECK", "c", "eth0", n.conf())
	wantError(t, err, types.ErrPluginNotAvailable, n.subnetFile)
}

func TestStatusSaysWhetherAPodCouldBeAttached(t *testing.T) {
	n := newNode(t, subnetIPv4)
	conf := n.conf(`"cniVersion": "1.1.0"`)
	n.must("STATUS", "", "", conf)
	if call := n.delegates.calls[0]; call.conf["cniVersion"] != "1.1.0" || call.conf["ipam"] == nil {
		t.Errorf("the delegate got %v", call.conf)
	}
	n.wantRan("bridge STATUS /")

	n.delegates.fail = map[string]error{"STATUS": types.NewError(types.ErrLimitedConnectivity, "no IPv6", "")}
	_, err := n.call("STATUS", "", "", conf)
	wantError(t, err, types.ErrLimitedConnectivity, "delegate bridge STATUS: no IPv6")
	n.ran()

	n.delegates.none = []string{"bridge"}
	_, err = n.call("STATUS", "", "", conf)
	wantError(t, err, types.ErrPluginNotAvailable, `"bridge"`, "install it")

	n.setSubnet("FLANNEL_MTU=1450\n")
	_, err = n.call("STATUS", "", "", conf)
	wantError(t, err, types.ErrPluginNotAvailable, n.subnetFile, "FLANNEL_SUBNET")
	if err := os.Remove(n.subnetFile); err != nil {
		t.Fatal(err)
	}
	_, err = n.call("STATUS", "", "", conf)
	wantError(t, err, types.ErrPluginNotAvailable, n.subnetFile, "no such file")
	n.wantRan()
}

func TestGCEndsAttachmentsThatAreNoLongerValid(t *testing.T) {
	n := newNode(t, subnetIPv4)
	for _, c := range []string{"alive", "gone", "half"} {
		n.must("ADD", c, "eth0", n.conf())
	}
	n.must("ADD", "half", "net1", n.conf())
	n.must("ADD", "elsewhere", "eth0", strings.ReplaceAll(n.conf(), "cni-flannel", "other"))
	n.put("stock-alive", fmt.Sprintf(byStock, "cni-flannel"))
	n.put("stock-gone", fmt.Sprintf(byStock, "cni-flannel"))
	n.put("damaged", "{")
	n.put(".written.new", "{") // by an ADD of another network at this moment
	n.ran()

	n.must("GC", "", "", n.conf(`"cniVersion": "1.1.0"`, `"cni.dev/valid-attachments": [
		{"containerID": "alive", "ifname": "eth0"}, {"containerID": "half", "ifname": "net1"},
		{"containerID": "stock-alive", "ifname": "net7"}]`))
	n.wantFiles(".written.new", "alive", "damaged", "elsewhere", "half:net1", "stock-alive")
	valid := n.delegates.calls[len(n.delegates.calls)-1].conf["cni.dev/valid-attachments"]
	sameJSON(t, valid, `[{"containerID": "alive", "ifname": "eth0"}, {"containerID": "half", "ifname": "net1"},
		{"containerID": "stock-alive", "ifname": "net7"}]`)
	n.wantRan("bridge DEL gone/eth0", "bridge DEL half/eth0", "bridge DEL stock-gone/eth0", "bridge GC /")
	if !strings.Contains(n.stderr.String(), n.dataDir+"/damaged is damaged") {
		t.Errorf("said %q, want the damaged file", n.stderr.String())
	}
}

func TestGCWithoutAttachmentsEndsAll(t *testing.T) {
	n := newNode(t, subnetIPv4)
	n.must("GC", "", "", n.conf()) // with no data directory
	n.must("ADD", "c", "eth0", n.conf())
	n.must("GC", "", "", n.conf())
	n.wantFiles()
}

func TestGCGoesOnAfterAFailure(t *testing.T) {
	n := newNode(t, subnetIPv4)
	n.must("ADD", "a", "eth0", n.conf())
	n.must("ADD", "b", "eth0", n.conf())
	n.ran()
	n.delegates.fail = map[string]error{"DEL": errors.New("busy")}
	_, err := n.call("GC", "", "", n.conf())
	wantError(t, err, types.ErrTryAgainLater, "container a, interface eth0: delegate bridge DEL: busy", "container b, interface eth0")
	n.wantFiles("a", "b")
	n.wantRan("bridge DEL a/eth0", "bridge DEL b/eth0", "bridge GC /")

	n.delegates.fail = nil
	if err := os.Remove(n.subnetFile); err != nil {
		t.Fatal(err)
	}
	_, err = n.call("GC", "", "", n.conf())
	wantError(t, err, types.ErrTryAgainLater, n.subnetFile)
	n.wantFiles() // what was saved is enough for these
}
