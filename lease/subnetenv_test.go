package lease

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The texts are what flannel v0.28.4 writes.
var subnetEnvs = []struct {
	name string
	env  SubnetEnv
	text string
}{
	{"IPv4", SubnetEnv{Network: prefix("10.5.0.0/16"), Subnet: prefix("10.5.52.0/24"), MTU: 1472},
		"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"},
	{"dual-stack", SubnetEnv{Network: prefix("10.5.0.0/16"), Subnet: prefix("10.5.52.0/24"),
		IPv6Network: prefix("fc00:5::/48"), IPv6Subnet: prefix("fc00:5:0:1::/64"), MTU: 1472, IPMasq: true},
		"FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.52.1/24\nFLANNEL_IPV6_NETWORK=fc00:5::/48\nFLANNEL_IPV6_SUBNET=fc00:5:0:1::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n"},
	{"IPv6", SubnetEnv{IPv6Network: prefix("fc00:5::/48"), IPv6Subnet: prefix("fc00:5:0:1::/64"), MTU: 1452},
		"FLANNEL_IPV6_NETWORK=fc00:5::/48\nFLANNEL_IPV6_SUBNET=fc00:5:0:1::1/64\nFLANNEL_MTU=1452\nFLANNEL_IPMASQ=false\n"},
}

func TestSubnetEnvIsWrittenAsFlannelDoes(t *testing.T) {
	for _, tt := range subnetEnvs {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "run", "flannel", "subnet.env")
			umask := syscall.Umask(0o077)
			err := tt.env.Write(path)
			syscall.Umask(umask)
			if err != nil {
				t.Fatal(err)
			}
			if text, err := os.ReadFile(path); err != nil || string(text) != tt.text {
				t.Errorf("got\n%s%v\nwant\n%s", text, err, tt.text)
			}
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 {
				t.Errorf("got mode %v, %v; want 0644 whatever the umask", info.Mode(), err)
			}
			got, err := ReadSubnetEnv(path)
			if err != nil || got != tt.env {
				t.Errorf("read back %+v, %v", got, err)
			}
			if p := got.Previous(); p.Subnet != tt.env.Subnet || p.IPv6Subnet != tt.env.IPv6Subnet {
				t.Errorf("previous %+v", p)
			}
		})
	}
}

func TestSubnetEnvIsReplacedWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "subnet.env")
	for _, tt := range subnetEnvs {
		if err := tt.env.Write(path); err != nil {
			t.Fatal(err)
		}
	}
	old, err := os.Open(path) // a reader that is in the middle
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	if err := subnetEnvs[0].env.Write(path); err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 4096)
	n, err := old.Read(text)
	if last := subnetEnvs[len(subnetEnvs)-1].text; err != nil || string(text[:n]) != last {
		t.Errorf("a reader that had the file open got %q, %v; want the old text", text[:n], err)
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}

func TestWriteSubnetEnvNamesWhatFails(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "subnet.env")
	if err := os.MkdirAll(filepath.Join(path, "in-the-way"), 0o755); err != nil {
		t.Fatal(err)
	}
	err := SubnetEnv{}.Write(path)
	if err == nil || !strings.HasPrefix(err.Error(), "write subnet file: ") || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
	if names, _ := os.ReadDir(dir); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
}

func TestReadSubnetEnv(t *testing.T) {
	dir := t.TempDir()
	if _, err := ReadSubnetEnv(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: got %v", err)
	}
	path := filepath.Join(dir, "subnet.env")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("# by hand\n\nexport FLANNEL_SUBNET=\"10.5.7.1/24\"\nOTHER=1\nFLANNEL_MTU=1400")
	if e, err := ReadSubnetEnv(path); err != nil || e.Subnet != prefix("10.5.7.0/24") || e.MTU != 1400 {
		t.Errorf("got %+v, %v", e, err)
	}
	write("FLANNEL_NETWORK=10.5.0.0/16,192.168.0.0/16\n")
	if e, err := ReadSubnetEnv(path); err != nil || e.Network != prefix("10.5.0.0/16") {
		t.Errorf("a list of networks: got %+v, %v; want the first", e, err)
	}
	write("FLANNEL_MTU=1400\nFLANNEL_SUBNET=10.5.7.1\n")
	if _, err := ReadSubnetEnv(path); err == nil || !strings.Contains(err.Error(), path+":2: FLANNEL_SUBNET: ") {
		t.Errorf("got %v, want file, line and variable", err)
	}
}

func TestRemoveSubnetEnvTakesTheUnfinishedTextAlong(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "subnet.env")
	if err := RemoveSubnetEnv(path); err != nil {
		t.Errorf("where there is none: %v", err)
	}
	for _, name := range []string{"subnet.env", ".subnet.env.new", "other.env"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := RemoveSubnetEnv(path); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "other.env" {
		t.Errorf("left: %v, %v", left, err)
	}
	if err := os.MkdirAll(filepath.Join(path, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := RemoveSubnetEnv(path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("a directory in its place: %v", err)
	}
}

// TestSubnetFileFollowsNoLink: a user who may write to its directory could have any file
// of the host overwritten.
func TestSubnetFileFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	victim, path := filepath.Join(dir, "shadow"), filepath.Join(dir, "subnet.env")
	if err := os.WriteFile(victim, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{filepath.Join(dir, ".subnet.env.new"), path} {
		if err := os.Symlink(victim, at); err != nil {
			t.Fatal(err)
		}
		if err := (SubnetEnv{MTU: 1450}).Write(path); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(victim); err != nil || string(text) != "secret" {
			t.Errorf("link at %s: the file it leads to is now %q, %v", at, text, err)
		}
		if env, err := ReadSubnetEnv(path); err != nil || env.MTU != 1450 {
			t.Errorf("link at %s: got %+v, %v", at, env, err)
		}
		os.Remove(path)
	}
}
