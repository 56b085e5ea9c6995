package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestUnusableLeaseFileIsRefusedWithItsLine(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	change := func(old, new string) string {
		if !strings.Contains(soundLeases, old) {
			t.Fatalf("the valid file has no %q", old)
		}
		return strings.Replace(soundLeases, old, new, 1)
	}
	second := `{"Subnet": "10.5.2.0/24", "PublicIP": "172.31.9.12"}`
	for _, c := range []struct {
		name, text string
		says       []string
	}{
		{"empty", "", []string{"leases.json: the file is empty", `want an object such as {"Network": `}},
		{"garbage", "\x7fELF\x02\x01\x01", []string{"leases.json:1:1: invalid character"}},
		{"cut off", soundLeases[:len(soundLeases)-6], []string{"unexpected end of JSON input"}},
		{"not an object", "[]", []string{"leases.json", "is a JSON array; want an object"}},
		{"no network", change(`"Network"`, `"Netz"`), []string{"Network is missing", `"10.5.0.0/16"`}},
		{"wrong network", change("10.5.0.0/16", "10.5.0.0/33"), []string{`leases.json:2: Network "10.5.0.0/33"`, "want an IPv4 network"}},
		{"no leases", change(`"Leases"`, `"Loans"`), []string{"Leases is missing", "want a list"}},
		{"misspelt key", change(`"PublicIP"`, `"PublikIP"`), []string{`leases.json:5: Leases[0]: unknown key "PublikIP"`, `did you mean "PublicIP"?`}},
		{"no subnet", change(`"Subnet": "10.5.1.0/24", `, ""), []string{"leases.json:5: Leases[0]: neither Subnet nor IPv6Subnet is set"}},
		{"no address", change("172.31.9.12", "172.31.9.312"), []string{`leases.json:6: Leases[1].PublicIP "172.31.9.312"`, "want an IPv4 address"}},
		{"host bits", change("10.5.2.0/24", "10.5.2.1/24"), []string{`leases.json:6: Leases[1].Subnet "10.5.2.1/24"`, `the subnet is "10.5.2.0/24"`}},
		{"overlapping subnets", change(second, second+`,
    {"Subnet": "10.5.2.128/25", "PublicIP": "172.31.9.13"}`),
			[]string{`leases.json:7: Leases[2].Subnet "10.5.2.128/25" overlaps Leases[1].Subnet "10.5.2.0/24"`, "line 6"}},
		{"two leases with one subnet", change("10.5.2.0/24", "10.5.1.0/24"),
			[]string{`leases.json:6: Leases[1].Subnet "10.5.1.0/24"`, "Leases[0]", "line 5"}},
		{"two leases with one address", change("172.31.9.12", "172.31.9.11"),
			[]string{`leases.json:6: Leases[1].PublicIP "172.31.9.11"`, "Leases[0]", "line 5"}},
		{"subnet outside the network", change("10.5.2.0/24", "10.6.2.0/24"),
			[]string{`leases.json:6: Leases[1].Subnet "10.6.2.0/24" is outside the network 10.5.0.0/16`}},
		{"no lease for this node", change("172.31.9.11", "172.31.9.19"),
			[]string{"no lease for this node: looked for 172.31.9.11", "the file has 172.31.9.19, 172.31.9.12", "add a lease", "--iface"}},
		{"backend of stock flannel", change(`"udp"`, `"ipip"`), []string{`backend type "ipip" is not supported by twilld, only by flannel`, "set Backend.Type in the network config to one of alloc, auto, host-gw, udp, vxlan"}},
		{"backend in capitals", change(`"udp"`, `"WireGuard"`), []string{`backend type "wireguard" is not supported`}},
		{"backend of no type", change(`{"Type": "udp"}`, `{"Port": 1}`), []string{"leases.json:3: Backend", `{"Type": "udp"}`}},
		{"port 0", change(`"udp"`, `"udp", "Port": 0`), []string{"Backend.Port 0: want a port from 1 to 65535"}},
		{"port too great", change(`"udp"`, `"udp", "Port": 70000`), []string{"Backend.Port 70000: want a port from 1 to 65535"}},
		{"port no number", change(`"udp"`, `"udp", "Port": "high"`), []string{`Backend.Port "high"`, "want a whole number"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s.write(c.text)
			s.refuses(t, because(c.says...), s.flags()...)
		})
	}
}

func TestWhatIsNotALeaseFileIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	absent := filepath.Join(s.dir, "absent.json")
	s.refuses(t, because("lease file "+absent+": no such file", "--lease-file"), s.flags("--lease-file="+absent)...)
	s.refuses(t, because("lease file "+s.dir+": not a regular file", "--lease-file"), s.flags("--lease-file="+s.dir)...)
	s.refuses(t, because("/dev/null: not a regular file"), s.flags("--lease-file=/dev/null")...)
}

func TestSubnetFileThatCannotBeWrittenIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	inTheWay := filepath.Join(s.dir, "directory")
	if err := os.Mkdir(inTheWay, 0o755); err != nil {
		t.Fatal(err)
	}
	s.refuses(t, because("write subnet file", inTheWay, "--subnet-file"), s.flags("--subnet-file="+inTheWay)...)
	s.refuses(t, because("write subnet file", "/proc/flannel", "--subnet-file"), s.flags("--subnet-file=/proc/flannel/subnet.env")...)
}

func TestControlSocketThatCannotBeMadeIsRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.refuses(t, because("control socket "+s.leaseFile, "not a socket", "--socket"), s.flags("--socket="+s.leaseFile)...)
	long := filepath.Join(s.dir, strings.Repeat("x", 100))
	s.refuses(t, because("control socket", "the kernel accepts at most 107", "--socket"), s.flags("--socket="+long)...)
}
