package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/version"
)

// packages makes the deb and the rpm of this host's architecture, of the programs that
// the tests run, and returns their paths.
func packages(t testing.TB) (deb, rpm string) {
	t.Helper()
	testkit.Must(t, build("twill", "./cmd/twill"))
	root := filepath.Join("..", "..", "..")
	dist := scratchDir(t)
	name := "twill-" + version.Release + "-linux-" + runtime.GOARCH
	shell(t, `set -eu
		mkdir -p "$1/$2"
		cp -r "$3/LICENSE" "$3/CHANGELOG.md" "$3/docs" "$3/deploy" "$4" "$5" "$1/$2/"
		tar -C "$1" -czf "$1/$2.tar.gz" "$2"
		"$3/scripts/packages.sh" "$1"`, dist, name, root, bin("twilld"), bin("twill"))
	debs, _ := filepath.Glob(filepath.Join(dist, "*.deb"))
	rpms, _ := filepath.Glob(filepath.Join(dist, "*.rpm"))
	if len(debs) != 1 || len(rpms) != 1 {
		t.Fatalf("packages.sh created %q and %q", debs, rpms)
	}
	return debs[0], rpms[0]
}

// shell runs a script with arguments, and returns what it has printed.
func shell(t testing.TB, script string, args ...string) string {
	t.Helper()
	out, err := exec.Command("bash", append([]string{"-c", script, "bash"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

func TestPackages(t *testing.T) {
	t.Parallel()
	deb, rpm := packages(t)
	t.Run("have the same files", func(t *testing.T) { haveSameFiles(t, deb, rpm) })
	t.Run("are installed, upgraded and removed", func(t *testing.T) { installUpgradeRemove(t, deb) })
}

// installUpgradeRemove runs dpkg and systemd of this host on a machine with a /usr of
// its own.
func installUpgradeRemove(t *testing.T, deb string) {
	s := newSite(t)
	m := boot(t, s.NS)
	m.run("sh", "-c", `set -e
		rm -r /etc/systemd/system/twilld.service* /etc/twill
		mkdir -p /overlay /var/lib/dpkg/info /var/lib/dpkg/updates /var/lib/dpkg/triggers
		mount -t tmpfs none /overlay
		mkdir /overlay/upper /overlay/work
		mount -t overlay -o lowerdir=/usr,upperdir=/overlay/upper,workdir=/overlay/work none /usr
		touch /var/lib/dpkg/status
		echo 0 >/proc/sys/net/ipv4/ip_forward
		systemctl daemon-reload`)
	content, err := os.ReadFile(deb)
	testkit.Must(t, err)
	m.write("/twill.deb", string(content))

	m.run("dpkg", "--install", "/twill.deb")
	if state := m.property("ActiveState"); state != "inactive" {
		t.Errorf("after the installation the service is %s", state)
	}
	m.run("bash", "-c", `set -e
		source /usr/share/bash-completion/completions/twill
		complete -p twill
		for page in twill twilld; do
			gzip -dc "/usr/share/man/man8/$page.8.gz" | groff -man -Tascii -ww | grep -q -e --
		done`)
	if forward := m.run("cat", "/proc/sys/net/ipv4/ip_forward"); forward != "1" {
		t.Errorf("after the installation ip_forward is %s", forward)
	}
	if got := m.run("twilld", "--version"); !strings.HasPrefix(got, "twilld "+version.Release) {
		t.Errorf("twilld --version prints %s", got)
	}

	m.write("/etc/twill/leases.json", soundLeases)
	m.run("sh", "-c", `printf 'FLANNELD_IFACE=%s\nFLANNELD_LEASE_FILE=/etc/twill/leases.json\n' "$0" >/etc/twill/twilld.env`, netlab.UnderlayLink)
	m.run("systemctl", "enable", "--now", "--no-block", "twilld")
	m.comes("ActiveState", "active")
	before, device := m.property("MainPID"), linkIndex(t, s.NS, "flannel0")

	m.run("dpkg", "--install", "/twill.deb")
	m.comes("ActiveState", "active")
	if after := m.property("MainPID"); after == before || after == "0" {
		t.Errorf("before the upgrade twilld was process %s, after it %s", before, after)
	}
	if log := m.run("journalctl", "--unit=twilld", "--no-pager", "--output=cat"); !strings.Contains(log, "handed over") || linkIndex(t, s.NS, "flannel0") != device {
		t.Errorf("the new version has not taken over from the old one:\n%s", log)
	}

	m.run("dpkg", "--remove", "twill")
	if state := m.property("LoadState"); state != "not-found" {
		t.Errorf("after the removal the unit is %s", state)
	}
	m.run("sh", "-c", "! pidof twilld && ! test -e /usr/bin/twilld && ! test -e /etc/systemd/system/multi-user.target.wants/twilld.service")
	m.run("grep", "LEASE_FILE", "/etc/twill/twilld.env")
	m.run("dpkg", "--purge", "twill")
	m.run("sh", "-c", "! test -e /etc/twill/twilld.env")
}

func haveSameFiles(t *testing.T, deb, rpm string) {
	inDeb := strings.Fields(shell(t, `dpkg-deb --fsys-tarfile "$1" | tar -tf - | sed -n 's#^\./#/#; /[^/]$/p'`, deb))
	inRPM := strings.Fields(shell(t, `rpm --query --list --package "$1"`, rpm))
	inRPM = slices.DeleteFunc(inRPM, func(path string) bool { return !slices.Contains(inDeb, path) && isDir(t, rpm, path) })
	slices.Sort(inDeb)
	slices.Sort(inRPM)
	if !slices.Equal(inDeb, inRPM) {
		t.Errorf("the deb has\n%s\nthe rpm has\n%s", strings.Join(inDeb, "\n"), strings.Join(inRPM, "\n"))
	}
	for _, want := range []string{"/usr/bin/twilld", "/usr/bin/twill", "/usr/lib/systemd/system/twilld.service", "/etc/twill/twilld.env"} {
		if !slices.Contains(inDeb, want) {
			t.Errorf("the deb has no %s", want)
		}
	}
	if conf := strings.TrimSpace(shell(t, `rpm --query --configfiles --package "$1"`, rpm)); conf != "/etc/twill/twilld.env" {
		t.Errorf("configuration files of the rpm: %s", conf)
	}
}

// isDir reports whether the path is a directory in the rpm.
func isDir(t testing.TB, rpm, path string) bool {
	t.Helper()
	return strings.Contains(shell(t, `rpm --query --list --verbose --package "$1" | grep "^d.* $2\$" || true`, rpm, path), path)
}
