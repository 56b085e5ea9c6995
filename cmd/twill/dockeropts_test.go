package main

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/twillnet/twill/internal/command"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

func TestMain(m *testing.M) { netlabtest.Main(m) }

const subnetEnv = "FLANNEL_NETWORK=10.5.0.0/16\nFLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"

// dockerOptions runs the command and returns the file that it writes.
func dockerOptions(t *testing.T, env string, args ...string) (text, path string, err error) {
	t.Helper()
	dir := t.TempDir()
	in, path := filepath.Join(dir, "subnet.env"), filepath.Join(dir, "docker_opts.env")
	if err := os.WriteFile(in, []byte(env), 0o644); err != nil {
		t.Fatal(err)
	}
	err = program.Run(t.Context(), append([]string{"docker-opts", "-f", in, "-d", path}, args...), &bytes.Buffer{}, &bytes.Buffer{})
	out, readErr := os.ReadFile(path)
	if (readErr == nil) != (err == nil) {
		t.Errorf("error %v, but the file: %v", err, readErr)
	}
	return string(out), path, err
}

// The texts are what flannel's mk-docker-opts.sh of v0.28.9 writes.
func TestDockerOptionsAreFlannelsToTheLetter(t *testing.T) {
	const (
		bip      = `DOCKER_OPT_BIP="--bip=10.5.1.1/24"` + "\n"
		ipmasq   = `DOCKER_OPT_IPMASQ="--ip-masq=false"` + "\n"
		mtu      = `DOCKER_OPT_MTU="--mtu=1450"` + "\n"
		combined = `=" --bip=10.5.1.1/24 --ip-masq=false --mtu=1450"` + "\n"
	)
	for _, tt := range []struct {
		name, subnetEnv string
		args, environ   []string
		want            string
	}{
		{"both forms", subnetEnv, nil, nil, bip + ipmasq + mtu + "DOCKER_OPTS" + combined},
		{"single", subnetEnv, []string{"-i"}, nil, bip + ipmasq + mtu},
		{"combined", subnetEnv, []string{"-c"}, nil, "DOCKER_OPTS" + combined},
		{"both by name", subnetEnv, []string{"-ic"}, nil, bip + ipmasq + mtu + "DOCKER_OPTS" + combined},
		{"another name", subnetEnv, []string{"-c", "-k", "DOCKER_NETWORK_OPTIONS"}, nil, "DOCKER_NETWORK_OPTIONS" + combined},
		{"another name, in one word", subnetEnv, []string{"-ckDOCKER_NETWORK_OPTIONS"}, nil, "DOCKER_NETWORK_OPTIONS" + combined},
		{"old Docker", subnetEnv, []string{"-m"}, nil, bip + mtu + `DOCKER_OPTS=" --bip=10.5.1.1/24 --mtu=1450"` + "\n"},
		{"Docker masquerades", strings.Replace(subnetEnv, "true", "false", 1), []string{"-c"}, nil,
			`DOCKER_OPTS=" --bip=10.5.1.1/24 --ip-masq=true --mtu=1450"` + "\n"},
		{"options of the environment", subnetEnv, nil, []string{"DOCKER_OPTS=--debug", "DOCKER_OPT_LOG=--log-level=warn"},
			bip + ipmasq + `DOCKER_OPT_LOG="--log-level=warn"` + "\n" + mtu +
				`DOCKER_OPTS="--debug  --bip=10.5.1.1/24 --ip-masq=false --log-level=warn --mtu=1450"` + "\n"},
		{"subnet only", "FLANNEL_SUBNET=10.5.1.1/24\n", nil, nil, bip + `DOCKER_OPTS=" --bip=10.5.1.1/24"` + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, e := range tt.environ {
				name, value, _ := strings.Cut(e, "=")
				t.Setenv(name, value)
			}
			got, path, err := dockerOptions(t, tt.subnetEnv, tt.args...)
			if err != nil || got != tt.want {
				t.Errorf("got %v\n%s\nwant\n%s", err, got, tt.want)
			}
			if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o644 {
				t.Errorf("mode of the file: %v, %v", info, err)
			}
		})
	}
}

func TestDockerOptionsOfTheEnvironmentReachTheShellAsTheyAre(t *testing.T) {
	const odd = "--label=\"a\" \\ $HOME `id`"
	t.Setenv("DOCKER_OPT_LABEL", odd)
	_, path, err := dockerOptions(t, subnetEnv)
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", `unset DOCKER_OPT_LABEL; . "$0"; printf %s "$DOCKER_OPT_LABEL"`, path).Output()
	if err != nil || string(out) != odd {
		t.Errorf("got %q, %v, want %q", out, err, odd)
	}
}

// TestWrongSubnetFileWritesNoDockerOptions: without a subnet Docker would start with a
// network of its own, and no container would reach another node.
func TestWrongSubnetFileWritesNoDockerOptions(t *testing.T) {
	for env, want := range map[string]string{
		"":                                    "FLANNEL_SUBNET is missing, so Docker would choose its own network",
		"FLANNEL_SUBNET=\nFLANNEL_MTU=1450\n": "FLANNEL_SUBNET is missing",
		"FLANNEL_IPV6_SUBNET=fd00::1/64\nFLANNEL_MTU=1450\n": "this node has only an IPv6 subnet",
		"FLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_IPMASQ=maybe\n": `FLANNEL_IPMASQ "maybe": want true or false`,
		"FLANNEL_SUBNET=10.5.1.1\n":                          `FLANNEL_SUBNET "10.5.1.1": want an IPv4 address`,
		"FLANNEL_SUBNET=fd00::1/64\n":                        `FLANNEL_SUBNET "fd00::1/64": want an IPv4 address`,
		"FLANNEL_SUBNET=10.5.1.1/24 --privileged\n":          "want an IPv4 address",
		"FLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=many\n":     `FLANNEL_MTU "many": want a number of bytes`,
		"FLANNEL_SUBNET=10.5.1.1/24\nFLANNEL_MTU=-1":         `FLANNEL_MTU "-1"`,
	} {
		if _, _, err := dockerOptions(t, env); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", env, err, want)
		}
	}
}

func TestDockerOptionsNameWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "subnet.env")
	err := program.Run(t.Context(), []string{"docker-opts", "-f", file}, &bytes.Buffer{}, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "check that twilld is ready") {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(file, []byte(subnetEnv), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "nowhere", "docker_opts.env")
	err = program.Run(t.Context(), []string{"docker-opts", "-f", file, "-d", out}, &bytes.Buffer{}, &bytes.Buffer{})
	if err == nil || !strings.Contains(err.Error(), out) || !strings.Contains(err.Error(), "-d") {
		t.Errorf("got %v", err)
	}
	err = program.Run(t.Context(), []string{"docker-opts", "-k", "A B"}, &bytes.Buffer{}, &bytes.Buffer{})
	var usage *command.UsageError
	if !errors.As(err, &usage) {
		t.Errorf("got %v, want a usage error", err)
	}
}

func TestLettersAreSplitAsTheShellDoes(t *testing.T) {
	for _, tt := range []struct{ args, want []string }{
		{[]string{"-ic"}, []string{"-i", "-c"}},
		{[]string{"-imkX", "-f/run/x"}, []string{"-i", "-m", "-k", "X", "-f", "/run/x"}},
		{[]string{"-ik", "-c", "-c"}, []string{"-i", "-k", "-c", "-c"}},
		{[]string{"-k=X", "--k", "X", "-help", "-"}, []string{"-k=X", "--k", "X", "-help", "-"}},
		{[]string{"-x"}, []string{"-x"}},
	} {
		if got := splitLetters(tt.args); !slices.Equal(got, tt.want) {
			t.Errorf("%q: got %q, want %q", tt.args, got, tt.want)
		}
	}
}

// TestSubnetThatIsRoutedElsewhereIsRefused: Docker would find the route and not
// make its bridge.
func TestSubnetThatIsRoutedElsewhereIsRefused(t *testing.T) {
	ns := netlabtest.Namespace(t, "host")
	link, err := ns.Netlink().LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{
		LinkIndex: link.Attrs().Index, Gw: net.IPv4(192, 0, 2, 1), Flags: int(netlink.FLAG_ONLINK),
		Dst: &net.IPNet{IP: net.IPv4(10, 5, 1, 0), Mask: net.CIDRMask(24, 32)},
	}
	check := func() error {
		return ns.Do(func() error {
			_, _, err := dockerOptions(t, subnetEnv)
			return err
		})
	}
	if err := check(); err != nil {
		t.Errorf("without the route: %v", err)
	}
	if err := ns.Netlink().RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	if err := check(); err == nil || !strings.Contains(err.Error(), "ip route delete 10.5.1.0/24 via 192.0.2.1") {
		t.Errorf("got %v", err)
	}
}
