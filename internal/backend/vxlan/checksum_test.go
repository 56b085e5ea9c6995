package vxlan

import (
	"testing"
)

func TestKernelsWithTheChecksumBugAreKnown(t *testing.T) {
	for release, broken := range map[string]bool{
		"3.10.0-1160.el7.x86_64":      true,
		"4.19.0-26-cloud-amd64":       true,
		"5.4.0-150-generic":           true,
		"5.6.19":                      true,
		"5.7.0":                       false,
		"5.10.0-30-cloud-arm64":       false,
		"6.18.44":                     false,
		"10.0":                        false,
		"5.6-rc1":                     true,
		"":                            false,
		"unknown":                     false,
		"5":                           false,
		"5.6.0-custom (with a blank)": true,
	} {
		if got := checksumsBroken(release); got != broken {
			t.Errorf("%q: %t, want %t", release, got, broken)
		}
	}
}

func TestChecksumOffloadIsOffOnKernelsWithTheBug(t *testing.T) {
	for _, tt := range []struct {
		release string
		on      bool
	}{
		{"5.4.0-150-generic", false},
		{"5.7.0", true},
		{"", true}, // this one is younger
	} {
		t.Run(tt.release, func(t *testing.T) {
			inside(t, func(h host) {
				cfg := h.config4()
				cfg.release = tt.release
				for range 2 { // the second finds it as the first has left it
					h.must(h.open(cfg).Close())
					features, err := h.ns.Features("flannel.1")
					h.must(err)
					if got := features["tx-checksum-ip-generic"]; got != tt.on {
						t.Errorf("tx-checksum-ip-generic is %t, want %t", got, tt.on)
					}
				}
			})
		})
	}
}
