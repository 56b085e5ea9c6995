package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
)

// byStock is a text as stock's plugin saves it.
const byStock = `{"ipMasq":false,"ipam":{"ranges":[[{"subnet":"10.1.17.0/24"}]],"routes":[{"dst":"10.1.0.0/16"}],"type":"host-local"},"isGateway":true,"mtu":1450,"name":%q,"type":"bridge"}`

func TestDelKeepsWhatIsSavedUntilTheDelegateSucceeds(t *testing.T) {
	n := newNode(t, subnetIPv4)
	n.must("ADD", "c", "eth0", n.conf())
	n.delegates.fail = map[string]error{"DEL": errors.New("busy")}
	for range 2 {
		_, err := n.call("DEL", "c", "eth0", n.conf())
		wantError(t, err, types.ErrInternal, "delegate bridge DEL: busy")
		n.wantFiles("c")
	}
	n.delegates.fail = nil
	n.must("DEL", "c", "eth0", n.conf())
	n.wantFiles()
	n.wantRan("bridge ADD c/eth0", "bridge DEL c/eth0", "bridge DEL c/eth0", "bridge DEL c/eth0")
}

func TestDelUsesTheConfigurationOfItsAdd(t *testing.T) {
	n := newNode(t, subnetIPv4)
	n.must("ADD", "c", "eth0", n.conf(`"delegate": {"type": "ptp"}`))
	if err := os.Remove(n.subnetFile); err != nil { // as after a reboot
		t.Fatal(err)
	}
	n.ran()
	n.must("DEL", "c", "eth0", n.conf(`"cniVersion": "1.0.0"`, `"prevResult": {"cniVersion": "1.0.0"}`))
	call := n.delegates.calls[0]
	if call.plugin != "ptp" || call.conf["mtu"] != 1472. {
		t.Errorf("DEL ran %s with %v", call.plugin, call.conf)
	}
	if call.conf["prevResult"] == nil || call.conf["cniVersion"] != "1.0.0" {
		t.Errorf("the delegate got %v, want the previous result and its version", call.conf)
	}
}

func TestTwoAttachmentsOfAContainerAreSeparate(t *testing.T) {
	n := newNode(t, subnetIPv4)
	n.must("ADD", "c", "eth0", n.conf())
	n.must("ADD", "c", "net1", n.conf(`"delegate": {"type": "macvlan"}`))
	n.wantFiles("c", "c:net1")
	n.ran()
	n.must("DEL", "c", "net1", n.conf())
	n.must("DEL", "c", "net1", n.conf()) // must not touch eth0
	n.wantFiles("c")
	n.must("DEL", "c", "eth0", n.conf())
	n.wantFiles()
	n.wantRan("macvlan DEL c/net1", "bridge DEL c/eth0")
}

func TestDelReadsWhatStockSaved(t *testing.T) {
	for _, tt := range []struct {
		name, ifName, network string
		ran                   bool
	}{
		{"the pod's interface", "eth0", "cni-flannel", true},
		{"another interface", "net1", "cni-flannel", true},
		{"an interface of another network", "net1", "cbr0", false},
		{"the pod's interface, of another network", "eth0", "cbr0", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t, subnetIPv4)
			n.put("c", fmt.Sprintf(byStock, tt.network))
			n.must("DEL", "c", tt.ifName, n.conf())
			if tt.ran {
				n.wantRan("bridge DEL c/" + tt.ifName)
				n.wantFiles()
			} else {
				n.wantRan()
				n.wantFiles("c")
			}
		})
	}
}

func TestDelWithADamagedFileUsesThePresentConfiguration(t *testing.T) {
	for _, text := range []string{"", `{"name": "cni-fl`, "null", "[]", `{"name": 5, "type": "bridge"}`, `{"name": "cni-flannel"}`} {
		t.Run(text, func(t *testing.T) {
			n := newNode(t, subnetIPv4)
			n.put("c", text)
			if err := os.Rename(n.subnetFile, n.subnetFile+".away"); err != nil {
				t.Fatal(err)
			}
			_, err := n.call("DEL", "c", "eth0", n.conf())
			wantError(t, err, types.ErrTryAgainLater, n.subnetFile, n.dataDir+"/c is damaged")
			n.wantRan()
			n.wantFiles("c")

			if err := os.Rename(n.subnetFile+".away", n.subnetFile); err != nil {
				t.Fatal(err)
			}
			n.must("DEL", "c", "eth0", n.conf())
			if name := n.delegates.calls[0].conf["name"]; name != "cni-flannel" {
				t.Errorf("the delegate got the network %v", name)
			}
			n.wantRan("bridge DEL c/eth0")
			n.wantFiles()
			if !strings.Contains(n.stderr.String(), n.dataDir+"/c is damaged") {
				t.Errorf("said %q, want the file", n.stderr.String())
			}
		})
	}
}

func TestDelTakesAnUnfinishedFileAlong(t *testing.T) {
	n := newNode(t, subnetIPv4)
	n.put(".c.new", `{"na`)
	n.must("DEL", "c", "eth0", n.conf())
	n.wantFiles()
	n.wantRan()
}

func TestManyAttachmentsAtOnce(t *testing.T) {
	dir := stateDir(t.TempDir())
	var all sync.WaitGroup
	for i := range 50 {
		for _, ifName := range []string{"eth0", "net1"} {
			all.Go(func() {
				a := attachment{fmt.Sprint("container-", i), ifName}
				d := delegate{"type": encode("bridge"), "name": encode("n"), "own": encode(a.fileName())}
				if err := dir.save(a, d); err != nil {
					t.Error(err)
				}
				got, file, err := dir.load(a, "n")
				if err != nil || string(got.text()) != string(d.text()) || file != a.fileName() {
					t.Errorf("%v: got %s in %s, %v", a, got.text(), file, err)
				}
				if attachmentOf(file) != a {
					t.Errorf("%s is taken for %v", file, attachmentOf(file))
				}
				if err := dir.remove(file); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	if left, err := os.ReadDir(string(dir)); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// The temporary name is known, so a link that was planted there must not be followed.
func TestSavingFollowsNoLink(t *testing.T) {
	n := newNode(t, subnetIPv4)
	victim := filepath.Join(t.TempDir(), "victim")
	if err := errors.Join(os.WriteFile(victim, []byte("precious"), 0o600), os.MkdirAll(n.dataDir, 0o700),
		os.Symlink(victim, filepath.Join(n.dataDir, unfinished("c")))); err != nil {
		t.Fatal(err)
	}
	n.must("ADD", "c", "eth0", n.conf())
	if text, err := os.ReadFile(victim); err != nil || string(text) != "precious" {
		t.Errorf("the file behind the link has %q, %v", text, err)
	}
	n.wantFiles("c")
}
