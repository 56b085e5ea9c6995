package bench

import (
	"bufio"
	"bytes"
	"crypto/ecdh"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab"
	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

// peerScripts makes shell scripts in place of the programs of
// bench/peers/tools.
func peerScripts(t *testing.T, scripts map[string]string) Binaries {
	t.Helper()
	dir := t.TempDir()
	for name, script := range scripts {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return Binaries{FlannelUDP: filepath.Join(dir, "flannel-udp")}
}

func TestAPeerThatIsNotBuiltIsNamed(t *testing.T) {
	for _, tc := range []struct {
		path    Path
		there   map[string]string
		missing string
	}{
		{wireguardPath, nil, "wireguard-go"},
		{nebulaPath, nil, "nebula"},
		{nebulaPath, map[string]string{"nebula": ""}, "nebula-cert"},
	} {
		_, err := tc.path.up(t.Context(), nil, peerScripts(t, tc.there))
		want := tc.missing + " does not exist (build it with: make peers-bench)"
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestAPeerThatFailsIsQuoted(t *testing.T) {
	netlabtest.Root(t)
	const failing = "echo no such luck >&2\nexit 3\n"
	for _, tc := range []struct {
		path    Path
		scripts map[string]string
	}{
		{wireguardPath, map[string]string{"wireguard-go": failing}},
		{nebulaPath, map[string]string{"nebula": failing, "nebula-cert": ""}},
		{nebulaPath, map[string]string{"nebula": "", "nebula-cert": failing}},
	} {
		_, err := tc.path.Up(t.Context(), netlab.Options{}, peerScripts(t, tc.scripts))
		if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no such luck") {
			t.Errorf("%s: got %v", tc.path.Name, err)
		}
	}
	if left := netlab.Held(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestWireGuardKnowsTheOtherHostsAndTheirPods(t *testing.T) {
	var hosts []*netlab.Host
	keys := make(map[*netlab.Host]*ecdh.PrivateKey)
	for i := byte(1); i <= 3; i++ {
		h := &netlab.Host{
			Addr:    netip.AddrFrom4([4]byte{192, 0, 2, i}),
			Subnet:  netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 5, i, 0}), 24),
			Subnet6: netip.MustParsePrefix(fmt.Sprintf("fd00:10:5:%d::/64", i)),
		}
		key, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{i}, 32))
		if err != nil {
			t.Fatal(err)
		}
		hosts, keys[h] = append(hosts, h), key
	}
	want := fmt.Sprintf(`private_key=%s
listen_port=51820
public_key=%x
endpoint=192.0.2.1:51820
allowed_ip=10.5.1.0/24
allowed_ip=fd00:10:5:1::/64
public_key=%x
endpoint=192.0.2.3:51820
allowed_ip=10.5.3.0/24
allowed_ip=fd00:10:5:3::/64
`, strings.Repeat("02", 32), keys[hosts[0]].PublicKey().Bytes(), keys[hosts[2]].PublicKey().Bytes())
	if got := wireguardConfig(hosts[1], hosts, keys); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestARefusedWireGuardConfigurationIsAnError(t *testing.T) {
	for answer, want := range map[string]string{
		"errno=0\n\n":   "",
		"errno=-22\n\n": `configure: refused with "errno=-22"`,
		"":              "configure: read the answer: EOF",
	} {
		ours, theirs := net.Pipe()
		got := make(chan string, 1)
		go func() {
			defer theirs.Close()
			r, text := bufio.NewReader(theirs), ""
			for !strings.HasSuffix(text, "\n\n") {
				line, err := r.ReadString('\n')
				if err != nil {
					break
				}
				text += line
			}
			got <- text
			io.WriteString(theirs, answer)
		}()
		err := configureWireGuard(ours, "listen_port=1\n")
		ours.Close()
		if text := <-got; text != "set=1\nlisten_port=1\n\n" {
			t.Errorf("sent %q", text)
		}
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != want) {
			t.Errorf("answer %q: got %v, want %q", answer, err, want)
		}
	}
}
