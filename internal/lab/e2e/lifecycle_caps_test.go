package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/twillnet/twill/internal/lab/testkit"
)

// unprivileged is the user of a twilld that does not run as root.
const unprivileged = 4242

// unitCapabilities returns the capabilities that the service unit leaves twilld, as
// setpriv(1) names them.
func unitCapabilities(t *testing.T) (names []string) {
	t.Helper()
	unit, err := os.ReadFile(filepath.Join("..", "..", "..", "deploy", "systemd", "twilld.service"))
	testkit.Must(t, err)
	_, caps, ok := strings.Cut(string(unit), "\nCapabilityBoundingSet=")
	if !ok {
		t.Fatal("the unit names no capabilities")
	}
	caps, _, _ = strings.Cut(caps, "\n")
	for c := range strings.FieldsSeq(caps) {
		names = append(names, "+"+strings.ToLower(strings.TrimPrefix(c, "CAP_")))
	}
	return names
}

// confined returns a command that runs another with the rights that the service
// unit leaves it.
func confined(t *testing.T) []string {
	return []string{"setpriv", "--no-new-privs", "--bounding-set=-all," + strings.Join(unitCapabilities(t), ","), "--inh-caps=-all", "--"}
}

// withoutRoot returns a command that runs another as a user who is not root, with these
// capabilities and no others, and with a /dev/net/tun for all as udev makes it.
func withoutRoot(t *testing.T, caps ...string) []string {
	list := strings.Join(caps, ",")
	return []string{
		"unshare", "--mount", "sh", "-ec", `mknod -m 666 "$0" c 10 200; mount --bind "$0" /dev/net/tun; rm "$0"; exec "$@"`,
		filepath.Join(scratchDir(t), "tun"),
		"setpriv", "--no-new-privs", fmt.Sprintf("--reuid=%d", unprivileged), fmt.Sprintf("--regid=%d", unprivileged), "--clear-groups",
		"--bounding-set=-all," + list, "--inh-caps=-all," + list, "--ambient-caps=-all," + list, "--",
	}
}

// A user other than root needs CAP_NET_ADMIN alone, as an ambient capability, and a
// directory for the files; iptables is that of nftables.
//
// pod-a ── host a ──────────── host b ── pod-b
func TestUserWithOneAmbientCapabilityRunsEachBackend(t *testing.T) {
	t.Parallel()
	for backend, mtu := range map[string]int{"udp": 1472, "vxlan": 1430, "host-gw": 1500} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, labOptions{idle: true, flags: []string{"--backend=" + backend, "--iptables-forward-rules", "--ip-masq"}})
			testkit.Must(t, os.Chmod(filepath.Dir(l.leaseFile), 0o755), os.Chmod(filepath.Dir(bin("twilld")), 0o755))
			for _, d := range l.daemons {
				testkit.Must(t, os.Chown(filepath.Dir(d.subnetFile), unprivileged, unprivileged))
				d.wrap = withoutRoot(t, "+net_admin")
				d.start()
			}
			for _, d := range l.daemons {
				d.waitReady()
			}
			testkit.Must(t, l.SetPodMTU(mtu))
			talk := func() {
				t.Helper()
				testkit.Must(t, ping(l.pod(0), l.pod(1).Addr, mtu), ping(l.pod(0), l.pod(1).Addr6, mtu))
			}
			talk()
			d := l.daemons[0]
			proc, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
			testkit.Must(t, err)
			for _, want := range []string{fmt.Sprintf("\nUid:\t%d\t", unprivileged), "\nCapEff:\t0000000000001000\n", "\nCapBnd:\t0000000000001000\n"} {
				if !strings.Contains(string(proc), want) {
					t.Errorf("no %q in\n%s", want, proc)
				}
			}
			if info, err := os.Stat(d.subnetFile); err != nil || info.Sys().(*syscall.Stat_t).Uid != unprivileged {
				t.Errorf("%s: %+v, %v; want a file of the user", d.subnetFile, info, err)
			}
			if rules := d.ruleset(t); strings.Count(rules, "jump FLANNEL-POSTRTG") != 2 || strings.Count(rules, "jump FLANNEL-FWD") != 2 {
				t.Errorf("rules are missing:\n%s", rules)
			}
			if log := d.stderr.String(); strings.Contains(log, "permi") || strings.Contains(log, "level=ERROR") { // permission denied, operation not permitted
				t.Errorf("complaints:\n%s", log)
			}
			d.stop(syscall.SIGTERM)
			d.start()
			d.waitReady()
			talk()
		})
	}
}

// ruleset returns the rules on the daemon's host, as nft prints them.
func (d *daemon) ruleset(t *testing.T) string {
	t.Helper()
	out, err := d.ns.Command(t.Context(), "nft", "list", "ruleset").CombinedOutput()
	testkit.Must(t, err)
	return string(out)
}

// pod-a ── host a ──────────── host b ── pod-b
func TestCapabilitiesOfTheServiceUnitAreEnough(t *testing.T) {
	t.Parallel()
	l := newLab(t, labOptions{idle: true})
	for _, d := range l.daemons {
		d.wrap = confined(t)
	}
	l.start()
	forFamilies(t, l.pod(1), func(t *testing.T, addr netip.Addr) {
		if err := ping(l.pod(0), addr, 1472); err != nil {
			t.Error(err)
		}
	})
	for _, d := range l.daemons {
		for _, o := range d.status().Dataplane.Offloads {
			if !o.InForce && o.Mode != "off" {
				t.Errorf("%s: %s: %s", d.ns, o.Name, o.Why)
			}
		}
		if log := d.stderr.String(); strings.Contains(log, "level=WARN") || strings.Contains(log, "level=ERROR") {
			t.Errorf("complaints:\n%s", log)
		}
	}
}
