package layout

import (
	"encoding/json"
	"time"

	"github.com/twillnet/twill/lease"
)

// Wanted returns the annotations that a node with the attributes a must have,
// besides those that users write; an empty value means that there must be none. now
// is the time from which new extras count.
//
// They equal stock flannel's byte for byte (AcquireLease of pkg/subnet/kube in
// v0.28.9), with two exceptions: outdated annotations that stock flannel leaves
// behind are removed, and a node of the udp backend announces its IPv6 address,
// which stock flannel's udp backend does not use.
func (k *Keys) Wanted(e *Node, a lease.Attrs, now time.Time) (map[string]string, error) {
	data, more := split(a.BackendData)
	v6Data, moreV6 := split(a.BackendV6Data)
	want := map[string]string{
		k.managed: "true", k.kind: a.BackendType,
		k.data: "", k.public: "", k.v6Data: "", k.publicV6: "",
	}
	if a.BackendType != "vxlan" || data != noData {
		want[k.data] = data
		want[k.public] = noIPv4
		if a.PublicIP.IsValid() {
			want[k.public] = a.PublicIP.String()
		}
	}
	if a.PublicIPv6.IsValid() {
		want[k.publicV6] = a.PublicIPv6.String()
		if a.BackendType == "host-gw" || v6Data != noData {
			want[k.v6Data] = v6Data
		}
	}
	for _, o := range []struct{ by, of string }{{k.overwrite, k.public}, {k.overwriteV6, k.publicV6}} {
		if text := e.Annotations[o.by]; text != "" && want[o.of] != "" {
			if _, err := k.address(e, o.by, o.of == k.public); err != nil {
				return nil, err
			}
			want[o.of] = text
		}
	}
	x, err := k.wantedExtras(e, extras{BackendData: more, BackendV6Data: moreV6, Since: now})
	want[k.extras] = x
	return want, err
}

// wantedExtras returns the text for x: the existing text, if that still represents x.
func (k *Keys) wantedExtras(e *Node, x extras) (string, error) {
	if len(x.BackendData) == 0 && len(x.BackendV6Data) == 0 {
		return "", nil
	}
	if was, err := k.extrasOf(e); err == nil && !was.Since.IsZero() {
		since := x.Since
		x.Since = was.Since
		text, err := json.Marshal(x)
		if err != nil || string(text) == e.Annotations[k.extras] {
			return string(text), err
		}
		x.Since = since
	}
	text, err := json.Marshal(x)
	return string(text), err
}

// Changes returns the annotations to patch so that e has want; nil removes one.
func (k *Keys) Changes(e *Node, want map[string]string) map[string]any {
	c := map[string]any{}
	for key, text := range want {
		is, there := e.Annotations[key]
		switch {
		case text == "" && key != k.kind:
			if there {
				c[key] = nil
			}
		case !there || is != text:
			c[key] = text
		}
	}
	return c
}
