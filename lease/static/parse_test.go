package static

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twillnet/twill/internal/spelling"
	"github.com/twillnet/twill/lease"
)

const good = `{
  "Network": "10.5.0.0/16",
  "EnableIPv6": true,
  "IPv6Network": "fd00:5::/48",
  "Backend": {"Type": "udp", "Port": 8285},
  "Leases": [
    {"Subnet": "10.5.1.0/24", "IPv6Subnet": "fd00:5:0:1::/64", "PublicIP": "192.0.2.1", "PublicIPv6": "2001:db8::1"},
    {"subnet": "10.5.2.0/24", "PUBLICIP": "192.0.2.2", "BackendType": "VXLAN", "BackendData": {"VNI": 1}, "BackendV6Data": null},
    {"IPv6Subnet": "fd00:5:0:3::/64", "PublicIPv6": "2001:db8::3"}
  ]
}
`

func TestLeaseThatNamesNoBackendIsOfTheNetworks(t *testing.T) {
	for network, want := range map[string]string{"udp": "udp", "vxlan": "auto", "auto": "auto", "host-gw": "host-gw"} {
		v, err := parse("leases.json", strings.Replace(good, `"udp"`, `"`+network+`"`, 1))
		if err != nil {
			t.Fatal(err)
		}
		if v.leases[0].BackendType != want || v.leases[1].BackendType != "vxlan" {
			t.Errorf("%s: %q and %q", network, v.leases[0].BackendType, v.leases[1].BackendType)
		}
	}
}

func TestFileIsRead(t *testing.T) {
	v, err := parse("leases.json", good)
	if err != nil {
		t.Fatal(err)
	}
	if v.config.IPv4.SubnetLen != 24 || v.config.IPv6.SubnetLen != 64 || v.config.Backend.Type != "udp" {
		t.Errorf("config %+v", v.config)
	}
	var got []string
	for _, l := range v.leases {
		got = append(got, fmt.Sprint(l.Key(), l.PublicIP, l.PublicIPv6, l.BackendType, string(l.BackendData), string(l.BackendV6Data)))
	}
	want := []string{
		fmt.Sprint("10.5.1.0-24&fd00:5:0:1::-64", "192.0.2.1 2001:db8::1", "udp", `{"PartialChecksums":true}`, ""),
		fmt.Sprint("10.5.2.0-24", "192.0.2.2 invalid IP", "vxlan", `{"VNI": 1}`, ""),
		fmt.Sprint("0.0.0.0-0&fd00:5:0:3::-64", "invalid IP 2001:db8::3", "udp", `{"PartialChecksums":true}`, ""),
	}
	for i := range want {
		got[i], want[i] = strings.ReplaceAll(got[i], " ", ""), strings.ReplaceAll(want[i], " ", "")
		if got[i] != want[i] {
			t.Errorf("lease %d: got %s, want %s", i, got[i], want[i])
		}
	}
}

// TestFaultsAreNamed changes one thing in a good file and looks at the message.
func TestFaultsAreNamed(t *testing.T) {
	for _, tt := range []struct{ name, old, new, message string }{
		{"missing comma", `"EnableIPv6": true,`, `"EnableIPv6": true`,
			`lease file leases.json:4:3: invalid character '"' after object key:value pair`},
		{"cut off", "  ]\n}\n", "  ]\n", `lease file leases.json:11:1: unexpected end of JSON input`},
		{"empty", good, " \n", `lease file leases.json: the file is empty; want an object such as {"Network": "10.5.0.0/16", "Leases": [...]}`},
		{"not an object", good, "[]", `lease file leases.json: network config: the text is a JSON array; want an object`},

		{"config", `"Network": "10.5.0.0/16"`, `"Network": "10.5.0.0/16", "SubnetLen": 31`,
			`lease file leases.json:2: SubnetLen 31: want a whole number from 18 to 30 for Network 10.5.0.0/16`},
		{"backend", `{"Type": "udp", "Port": 8285}`, `{"Port": 8285}`,
			`lease file leases.json:5: Backend {"Port":8285}: want an object such as {"Type": "udp"}, or no Backend at all for "udp"`},
		{"no network", `"Network": "10.5.0.0/16",`, ``,
			`lease file leases.json:1: Network is missing; want an IPv4 network such as "10.5.0.0/16", or "EnableIPv4": false`},
		{"misspelt network", `"Network"`, `"Netwrok"`, `lease file leases.json:2: unknown key "Netwrok"; did you mean "Network"?`},
		{"misspelt option", `"EnableIPv6": true,`, `"EnableIPv6": true, "SubnetLne": 25,`, `lease file leases.json:3: unknown key "SubnetLne"; did you mean "SubnetLen"?`},

		{"misspelt leases", `"Leases"`, `"leasse"`, `lease file leases.json:6: unknown key "leasse"; did you mean "Leases"?`},
		{"no leases", `"Leases"`, `"Comment"`, `lease file leases.json:1: Leases is missing; want a list such as [{"Subnet": "10.5.1.0/24", "PublicIP": "192.0.2.1"}]`},
		{"two lists", `"Leases"`, `"leases": [], "Leases"`, `lease file leases.json:6: Leases is set twice; put all leases into one list`},
		{"not a list", `"Leases"`, `"Leases": {"10.5.1.0/24": "192.0.2.1"}, "Comment"`, `lease file leases.json:6: Leases {"10.5.1.0/24":"192.0.2.1"}: want a list such as [{…}, {…}]`},
		{"not a lease", `{"IPv6Subnet": "fd00:5:0:3::/64", "PublicIPv6": "2001:db8::3"}`, `"10.5.3.0/24"`,
			`lease file leases.json:9: Leases[2] "10.5.3.0/24": want an object such as {"Subnet": "10.5.1.0/24", "PublicIP": "192.0.2.1"}`},

		{"misspelt key", `"PUBLICIP"`, `"PublcIP"`, `lease file leases.json:8: Leases[1]: unknown key "PublcIP"; did you mean "PublicIP"?`},
		{"unknown key", `"PUBLICIP": "192.0.2.2"`, `"PublicIP": "192.0.2.2", "Rack": "rack 4"`,
			`lease file leases.json:8: Leases[1]: unknown key "Rack"; want one of Subnet, IPv6Subnet, PublicIP, PublicIPv6, BackendType, BackendData, BackendV6Data`},
		{"key twice", `"PUBLICIP": "192.0.2.2"`, `"PublicIP": "192.0.2.2", "PublicIP": "192.0.2.9"`, `lease file leases.json:8: Leases[1].PublicIP is set twice`},
		{"no subnet", `"subnet": "10.5.2.0/24", `, ``, `lease file leases.json:8: Leases[1]: neither Subnet nor IPv6Subnet is set`},
		{"no address", `"PUBLICIP": "192.0.2.2", `, ``, `lease file leases.json:8: Leases[1]: neither PublicIP nor PublicIPv6 is set`},

		{"no CIDR", `"10.5.2.0/24"`, `"10.5.2.0"`, `lease file leases.json:8: Leases[1].Subnet "10.5.2.0": want an IPv4 subnet such as "10.5.1.0/24"`},
		{"IPv6 for IPv4", `"10.5.2.0/24"`, `"fd00:5::/64"`, `lease file leases.json:8: Leases[1].Subnet "fd00:5::/64": want an IPv4 subnet such as "10.5.1.0/24"`},
		{"IPv4 for IPv6", `"fd00:5:0:1::/64"`, `"10.5.9.0/24"`, `lease file leases.json:7: Leases[0].IPv6Subnet "10.5.9.0/24": want an IPv6 subnet such as "fd00:5:0:1::/64"`},
		{"number", `"10.5.2.0/24"`, `24`, `lease file leases.json:8: Leases[1].Subnet 24: want an IPv4 subnet such as "10.5.1.0/24"`},
		{"host bits", `"10.5.2.0/24"`, `"10.5.2.1/24"`, `lease file leases.json:8: Leases[1].Subnet "10.5.2.1/24" has host bits set; the subnet is "10.5.2.0/24"`},
		{"outside", `"10.5.2.0/24"`, `"10.6.2.0/24"`, `lease file leases.json:8: Leases[1].Subnet "10.6.2.0/24" is outside the network 10.5.0.0/16`},
		{"overlap", `"10.5.2.0/24"`, `"10.5.0.0/20"`, `lease file leases.json:8: Leases[1].Subnet "10.5.0.0/20" overlaps Leases[0].Subnet "10.5.1.0/24" (line 7)`},
		{"one IPv6 subnet", `"fd00:5:0:3::/64"`, `"fd00:5:0:1::/64"`, `lease file leases.json:9: Leases[2].IPv6Subnet "fd00:5:0:1::/64" overlaps Leases[0].IPv6Subnet "fd00:5:0:1::/64" (line 7)`},
		{"IPv6 is off", `"EnableIPv6": true,`, ``, `lease file leases.json:7: Leases[0].IPv6Subnet is set; it needs "EnableIPv6": true and an "IPv6Network" (and 1 more)`},
		{"IPv4 is off", `"EnableIPv6": true,`, `"EnableIPv6": true, "EnableIPv4": false,`, `lease file leases.json:7: Leases[0].Subnet is set, but "EnableIPv4" is false (and 1 more)`},

		{"host name", `"192.0.2.2"`, `"node-2"`, `lease file leases.json:8: Leases[1].PublicIP "node-2": want an IPv4 address such as "192.0.2.1"`},
		{"zone", `"2001:db8::3"`, `"fe80::3%eth0"`, `lease file leases.json:9: Leases[2].PublicIPv6 "fe80::3%eth0": want an IPv6 address such as "2001:db8::1"`},
		{"link-local", `"2001:db8::3"`, `"fe80::3"`, `lease file leases.json:9: Leases[2].PublicIPv6: fe80::3 is in fe80::/10 (link-local), which other nodes cannot reach`},
		{"multicast", `"192.0.2.2"`, `"224.0.0.1"`, `lease file leases.json:8: Leases[1].PublicIP: 224.0.0.1 is in 224.0.0.0/4 (multicast), which other nodes cannot reach`},
		{"loopback", `"192.0.2.2"`, `"127.0.0.1"`, `lease file leases.json:8: Leases[1].PublicIP: 127.0.0.1 is in 127.0.0.0/8 (loopback), which other nodes cannot reach`},
		{"broadcast", `"192.0.2.2"`, `"255.255.255.255"`, `lease file leases.json:8: Leases[1].PublicIP: 255.255.255.255 is in 255.255.255.255/32 (broadcast), which other nodes cannot reach`},
		{"one address", `"192.0.2.2"`, `"192.0.2.1"`, `lease file leases.json:8: Leases[1].PublicIP "192.0.2.1" duplicates Leases[0].PublicIP "192.0.2.1" (line 7)`},
		{"backend type", `"VXLAN"`, `7`, `lease file leases.json:8: Leases[1].BackendType 7: want a string such as "udp"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Count(good, tt.old) != 1 {
				t.Fatalf("%q stands %d times in the good file", tt.old, strings.Count(good, tt.old))
			}
			_, err := parse("leases.json", strings.Replace(good, tt.old, tt.new, 1))
			if err == nil || err.Error() != tt.message {
				t.Errorf("\n got %v\nwant %s", err, tt.message)
			}
		})
	}
}

func TestAllFaultsAreKept(t *testing.T) {
	_, err := parse("leases.json", strings.NewReplacer(`"192.0.2.1"`, `"x"`, `"10.5.2.0/24"`, `"10.6.2.0/24"`, `"2001:db8::3"`, `"2001:db8::1"`).Replace(good))
	var e *Error
	if !errors.As(err, &e) || len(e.Faults) != 3 {
		t.Fatalf("got %v, want three faults", err)
	}
	for i, f := range e.Faults {
		if f.Line != 7+i {
			t.Errorf("fault %d is in line %d (%s), want %d", i, f.Line, f.Text, 7+i)
		}
	}
}

func TestUnknownTopLevelKeysPass(t *testing.T) {
	if _, err := parse("leases.json", strings.Replace(good, `"Network"`, `"_comment": "rack 4", "X": [{}], "Network"`, 1)); err != nil {
		t.Error(err)
	}
}

func TestOpenRefusesWhatIsNotAFile(t *testing.T) {
	dir := t.TempDir()
	for path, want := range map[string]string{
		dir:                          dir + ": not a regular file",
		"/dev/zero":                  "/dev/zero: not a regular file",
		filepath.Join(dir, "absent"): "no such file or directory",
	} {
		if _, err := Open(path, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("open %s: got %v, want %s", path, err, want)
		}
	}
}

func TestNearest(t *testing.T) {
	for _, tt := range []struct {
		key, want string
		distance  int
	}{
		{"subnet", "Subnet", 0}, {"Subnets", "Subnet", 1}, {"PublicIPv4", "PublicIPv6", 1}, {"PubIP", "PublicIP", 3}, {"", "Subnet", 6},
	} {
		if got, d := spelling.Nearest(tt.key, entryKeys); got != tt.want || d != tt.distance {
			t.Errorf("nearest to %q: got %q at %d, want %q at %d", tt.key, got, d, tt.want, tt.distance)
		}
	}
}

// FuzzParse looks for panics, and for files that are accepted and should not be.
func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Fuzz(func(t *testing.T, text string) {
		v, err := parse("leases.json", text)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || len(e.Faults) == 0 {
				t.Fatalf("got %T %v", err, err)
			}
			for _, f := range e.Faults {
				if lines := strings.Count(text, "\n") + 1; f.Text == "" || f.Line > lines {
					t.Fatalf("fault %+v in a text of %d lines", f, lines)
				}
			}
			return
		}
		if errs := lease.Check(v.config, v.leases); errs != nil {
			t.Fatalf("accepted: %v", errs)
		}
		for i, l := range v.leases {
			if len(l.Subnets()) == 0 || len(l.Addrs()) == 0 {
				t.Fatalf("accepted lease %d: %+v", i, l)
			}
			if v4, v6, err := lease.ParseKey(l.Key()); err != nil || v4 != l.Subnet || v6 != l.IPv6Subnet {
				t.Fatalf("key %q of lease %d does not name it: %v", l.Key(), i, err)
			}
			if _, err := lease.EncodeAttrs(l.Attrs); err != nil {
				t.Fatalf("lease %d: %v", i, err)
			}
		}
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
