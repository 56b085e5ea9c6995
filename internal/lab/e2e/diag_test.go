package e2e

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"path"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/twillnet/twill/internal/lab/testkit"
	"github.com/twillnet/twill/internal/status"
)

// unpacked returns the files of an archive of twill diag by their names in it.
func unpacked(t testing.TB, archive []byte) map[string]string {
	t.Helper()
	z, err := zstd.NewReader(bytes.NewReader(archive))
	testkit.Must(t, err)
	defer z.Close()
	files := make(map[string]string)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			return files
		}
		testkit.Must(t, err)
		body, err := io.ReadAll(r)
		testkit.Must(t, err)
		_, name, _ := strings.Cut(path.Clean(h.Name), "/") // all are in one directory
		files[name] = string(body)
	}
}

// diag runs twill diag beside d, and returns the files and the list.
func (d *daemon) diag(flags ...string) (files map[string]string, list string) {
	d.t.Helper()
	cmd := d.ns.Command(d.t.Context(), bin("twill"), append([]string{"diag", "-o=-", "-interval=1s", "--socket=" + d.socket}, flags...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		d.t.Fatalf("twill diag: %v\n%s", err, &errs)
	}
	return unpacked(d.t, out.Bytes()), errs.String()
}

// pod-a ── host a ──────────── host b ── pod-b
//
//	diag
func TestDiagPacksWhatABugReportNeeds(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	l := idleEtcdLab(t, 2, "--etcd-password=open-sesame", "--etcd-username=twill", "--iptables-forward-rules=true")
	l.grantAll()
	l.start()
	files, list := l.daemons[0].diag()
	for name, want := range map[string]string{
		"doctor.txt":           "peers",
		"config.json":          "10.5.0.0/16",
		"leases.json":          l.Hosts[1].Addr.String(),
		"subnet.env":           "FLANNEL_SUBNET=10.5.",
		"kernel/links.txt":     "flannel0",
		"kernel/routes.txt":    "dev flannel0",
		"kernel/sysctl.txt":    "net/ipv4/ip_forward = 1",
		"kernel/sockets.txt":   ":8285",
		"daemon/command.txt":   "--etcd-password=(left out)",
		"daemon/process.txt":   "VmRSS",
		"rules/iptables.txt":   "FLANNEL",
		"status-later.json":    `"version"`,
		"kernel/version.txt":   "Linux",
		"daemon/log.txt":       "",
		"rules/nftables.txt":   "",
		"kernel/routes6.txt":   "",
		"kernel/softnet.txt":   "0",
		"daemon/limits.txt":    "Max open files",
		"kernel/snmp.txt":      "Udp",
		"kernel/snmp6.txt":     "Udp6",
		"kernel/policy.txt":    "lookup main",
		"kernel/fdb.txt":       "",
		"kernel/addresses.txt": "inet",
	} {
		body, ok := files[name]
		if !strings.Contains(body, want) {
			t.Errorf("%s has no %q:\n%s", name, want, body)
		}
		if _, failed := files[name+".error"]; want != "" && (!ok || failed) {
			t.Errorf("%s is missing or incomplete: %s", name, files[name+".error"])
		}
		if !strings.Contains(list, name) {
			t.Errorf("the list has no %s:\n%s", name, list)
		}
	}
	for name, body := range files {
		if strings.Contains(body, "open-sesame") {
			t.Errorf("%s has the password", name)
		}
	}
	var earlier, later status.Document
	testkit.Must(t, json.Unmarshal([]byte(files["status.json"]), &earlier), json.Unmarshal([]byte(files["status-later.json"]), &later))
	if later.Uptime < earlier.Uptime+1 {
		t.Errorf("read at uptimes of %.1f s and %.1f s, a second apart", earlier.Uptime, later.Uptime)
	}
}

// A node without a daemon is the one that most needs a report.
func TestDiagWithoutADaemonPacksTheRest(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	cmd := exec.CommandContext(t.Context(), bin("twill"), "diag", "-o=-", "-interval=1s", "--socket=/nonexistent", "--lease-file=/nonexistent")
	out, err := cmd.Output()
	testkit.Must(t, err)
	files := unpacked(t, out)
	if !strings.Contains(files["status.json.error"], "no such socket") || !strings.Contains(files["kernel/version.txt"], "Linux") {
		t.Errorf("status.json.error: %q, kernel/version.txt: %q", files["status.json.error"], files["kernel/version.txt"])
	}
}

// pod-a ── host a ─┬─ host b ─┬─ host c ── pod-c
//
//	udp    │   udp    │  udp, does not forward
//	twill diag --all, which runs twill on all three
func TestDiagOfAllNodesNamesTheOneThatIsBroken(t *testing.T) {
	t.Parallel()
	testkit.Must(t, build("twill", "./cmd/twill"))
	c := newCluster(t, clusterOptions{backend: `{"Type": "udp"}`, Options: threeHosts})
	c.runTwill()
	c.running[2].(*daemon).sh("sysctl -qw net.ipv4.ip_forward=0")
	a := c.running[0].(*daemon)
	files, list := a.diag("--all", "--via="+c.via())
	for i, n := range c.nodes {
		for name, want := range map[string]string{"status.json": `"pid": ` + fmt.Sprint(c.running[i].(*daemon).cmd.Process.Pid), "doctor.txt": "peers", "kernel/links.txt": "flannel0"} {
			if body := files[n.Addr.String()+"/"+name]; !strings.Contains(body, want) {
				t.Errorf("%s of %s has no %q:\n%s", name, n.Addr, want, body)
			}
		}
	}
	_, ofC, found := strings.Cut(list, c.nodes[2].Addr.String()+" ")
	if !found || !strings.Contains(ofC, "ip_forward is 0") || !strings.Contains(ofC, "sysctl -w net/ipv4/ip_forward=1") {
		t.Errorf("the list does not say what is wrong with %s, and the remedy:\n%s", c.nodes[2].Addr, list)
	}
	if strings.Count(list, "ip_forward is 0") != 1 {
		t.Errorf("nodes other than %s are listed as not forwarding:\n%s", c.nodes[2].Addr, list)
	}

	cmd := a.ns.Command(t.Context(), bin("twill"), "diag", "--all", "-o=-", "-interval=100ms", "--socket="+a.socket, "--via=sh -c 'echo no login >&2; exit 255' {node}")
	var errs, out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if files := unpacked(t, out.Bytes()); err == nil || !strings.Contains(files[c.nodes[1].Addr.String()+".error"], "exit status 255: no login") || files[c.nodes[0].Addr.String()+"/status.json"] == "" {
		t.Errorf("with a --via that fails: %v, %d files\n%s", err, len(files), &errs)
	}
}
