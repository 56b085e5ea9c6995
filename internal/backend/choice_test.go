package backend

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/twillnet/twill/lease"
)

func config(t testing.TB, backend string) *lease.Config {
	t.Helper()
	c, err := lease.ParseConfig([]byte(`{"Network": "10.5.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00:5::/48", "Backend": ` + backend + `}`))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func settings(t testing.TB, backend, override string) Settings {
	t.Helper()
	s, err := SettingsOf(config(t, backend), override)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var (
	errNoVXLAN = errors.New("the kernel has no VXLAN")
	errNoTUN   = errors.New("/dev/net/tun is missing")
)

func TestBestPossibleWayIsChosen(t *testing.T) {
	has := func(err error) func() error { return func() error { return err } }
	hasVXLAN := func(err error) func(int) error { return func(int) error { return err } }
	both := Probes{VXLAN: hasVXLAN(nil), UDP: has(nil)}
	noVXLAN := Probes{VXLAN: hasVXLAN(errNoVXLAN), UDP: has(nil)}
	noUDP := Probes{VXLAN: hasVXLAN(nil), UDP: has(errNoTUN)}
	none := Probes{VXLAN: hasVXLAN(errNoVXLAN), UDP: has(errNoTUN)}
	for _, tt := range []struct {
		backend  string
		override string
		probes   Probes
		ways     []Kind
		says     string // of the reason, or of the error
	}{
		{`{"Type": "auto"}`, "", both, []Kind{VXLAN, UDP}, "the kernel supports VXLAN"},
		{`{"Type": "auto"}`, "", noVXLAN, []Kind{UDP}, "no VXLAN: the kernel has no VXLAN"},
		{`{"Type": "auto"}`, "", noUDP, []Kind{VXLAN}, "/dev/net/tun is missing"},
		{`{"Type": "auto"}`, "", none, nil, "no backend is available on this host"},
		{`{"Type": "vxlan"}`, "", both, []Kind{VXLAN, UDP}, "the kernel supports VXLAN"},
		{`{"Type": "vxlan"}`, "", noVXLAN, nil, "start twilld with --backend=auto"},
		{`{"Type": "vxlan"}`, "auto", noVXLAN, []Kind{UDP}, "no VXLAN"},
		{`{"Type": "udp"}`, "", none, []Kind{UDP}, ""}, // opening it says why not
		{`{"Type": "udp"}`, "auto", both, []Kind{VXLAN, UDP}, ""},
		{`{"Type": "udp"}`, "vxlan", both, []Kind{VXLAN, UDP}, ""},
		{`{"Type": "auto"}`, "udp", both, []Kind{UDP}, ""},
		{`{"Type": "host-gw"}`, "", none, []Kind{HostGW}, ""},
	} {
		s := settings(t, tt.backend, tt.override)
		c, err := s.Choose(s.Probe(tt.probes))
		says := c.Why
		if err != nil {
			says = err.Error()
		}
		if (err == nil) != (tt.ways != nil) || !slices.Equal(c.Kinds, tt.ways) || !strings.Contains(says, tt.says) {
			t.Errorf("%s, --backend=%s: %v %q (%v), want %v %q", tt.backend, tt.override, c.Kinds, c.Why, err, tt.ways, tt.says)
		}
	}
}

// A kernel that turns out not to have what the probe found costs a way, in auto
// mode, and not the node.
func TestWayThatFailsLeavesTheNext(t *testing.T) {
	failed := Failed{VXLAN: errNoVXLAN}
	c, err := settings(t, `{"Type": "auto"}`, "").Choose(failed)
	if err != nil || !slices.Equal(c.Kinds, []Kind{UDP}) || c.Why != "no VXLAN: the kernel has no VXLAN" {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := settings(t, `{"Type": "vxlan"}`, "").Choose(failed); err == nil {
		t.Error("a node that must have VXLAN does without")
	}
}

func TestOptionsGoToTheBackendThatTheyAreOf(t *testing.T) {
	for _, tt := range []struct {
		backend, override  string
		udpPort, vxlanPort int
	}{
		{`{"Type": "udp"}`, "", 8285, 0},
		{`{"Type": "udp", "Port": 9000}`, "", 9000, 0},
		{`{"Type": "udp", "Port": 9000}`, "auto", 9000, 0},
		{`{"Type": "vxlan", "Port": 4789}`, "", 8285, 4789},
		{`{"Type": "vxlan", "Port": 4789, "UDPPort": 9000}`, "auto", 9000, 4789},
		{`{"Type": "auto", "Port": 4789, "UDPPort": 9000}`, "", 9000, 4789},
	} {
		s := settings(t, tt.backend, tt.override)
		if int(s.UDP.Port) != tt.udpPort || s.VXLAN.Port != tt.vxlanPort {
			t.Errorf("%s, --backend=%s: udp %d, vxlan %d", tt.backend, tt.override, s.UDP.Port, s.VXLAN.Port)
		}
	}
	if s := settings(t, `{"Type": "udp", "DirectRouting": true}`, ""); !s.DirectRouting {
		t.Error("udp without DirectRouting")
	}
}

func TestConfigThatCannotBeIsNamed(t *testing.T) {
	long := strings.Repeat("x", 300_000) // for a log line and the status
	for backend, want := range map[string]string{
		`{"Type": "wireguard"}`:                `backend type "wireguard" is not supported by twilld, only by flannel; set Backend.Type in the network config to one of alloc, auto, host-gw, udp, vxlan`,
		`{"Type": "vxlam"}`:                    `backend type "vxlam" is not supported; set Backend.Type in the network config to one of alloc`,
		`{"Type": "` + long + `"}`:             `backend type "` + long[:60] + `" is not supported;`,
		`{"Type": "udp", "Port": 0}`:           "Backend.Port 0: want a port from 1 to 65535, or none for 8285",
		`{"Type": "auto", "UDPPort": 70000}`:   "Backend.UDPPort 70000: want a port",
		`{"Type": "udp", "MTU": -1}`:           "Backend.MTU",
		`{"Type": "vxlan", "VNI": 16777216}`:   "Backend.VNI",
		`{"Type": "auto", "DirectRouting": 1}`: "Backend.DirectRouting",
	} {
		_, err := SettingsOf(config(t, backend), "")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", backend, err, want)
		}
	}
}

// TestBackendsThatOnlyStockFlannelHasAreNamedAsSuch: one clear error instead of an unknown name.
func TestBackendsThatOnlyStockFlannelHasAreNamedAsSuch(t *testing.T) {
	for _, kind := range []string{"extension", "ipip", "ipsec", "tencent-vpc", "wireguard", "IPIP"} {
		_, err := SettingsOf(config(t, `{"Type": "`+kind+`"}`), "")
		want := `backend type "` + strings.ToLower(kind) + `" is not supported by twilld, only by flannel`
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", kind, err, want)
		}
	}
}

// What stays open beside another backend, and with which options.
func TestFormerBackendsStayOpenWhereNothingIsInTheirWay(t *testing.T) {
	for _, tt := range []struct {
		was, now string
		former   []Kind
		options  func(s Settings) any // of a former backend
		want     any
	}{
		{was: `{"Type": "udp"}`, now: `{"Type": "vxlan"}`, former: []Kind{UDP}},
		{was: `{"Type": "udp"}`, now: `{"Type": "vxlan", "UDPPort": 9000}`}, // as a fallback it has another port
		{was: `{"Type": "udp"}`, now: `{"Type": "vxlan", "Port": 8285, "UDPPort": 9000}`},
		{
			was: `{"Type": "udp", "Port": 9000}`, now: `{"Type": "host-gw"}`, former: []Kind{UDP},
			options: func(s Settings) any { return s.UDP.Port }, want: uint16(9000),
		},
		{
			was: `{"Type": "vxlan", "VNI": 7}`, now: `{"Type": "udp"}`, former: []Kind{VXLAN},
			options: func(s Settings) any { return s.VXLAN.VNI }, want: 7,
		},
		{was: `{"Type": "vxlan"}`, now: `{"Type": "udp", "Port": 8472}`}, // the port of the device
		{was: `{"Type": "vxlan"}`, now: `{"Type": "host-gw"}`, former: []Kind{VXLAN, UDP}},
		{was: `{"Type": "host-gw"}`, now: `{"Type": "udp"}`, former: []Kind{HostGW}},
		{was: `{"Type": "vxlan"}`, now: `{"Type": "vxlan", "VNI": 7}`},
		{was: `{"Type": "udp"}`, now: `{"Type": "udp", "Port": 9000}`},
		{was: `{"Type": "udp"}`, now: `{"Type": "alloc"}`},
	} {
		t.Run(tt.was+" to "+tt.now, func(t *testing.T) {
			choose := func(s Settings) Choice {
				if !s.Carries() {
					return Choice{}
				}
				c, err := s.Choose(nil)
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			was, now := settings(t, tt.was, ""), settings(t, tt.now, "")
			s, c := now.After(choose(now), was, choose(was))
			if !slices.Equal(c.Former, tt.former) || !slices.Equal(c.Kinds, choose(now).Kinds) {
				t.Errorf("%v, formerly %v; want formerly %v", c.Kinds, c.Former, tt.former)
			}
			if tt.options != nil && tt.options(s) != tt.want {
				t.Errorf("options of the former backend: %v, want %v", tt.options(s), tt.want)
			}
		})
	}
}
