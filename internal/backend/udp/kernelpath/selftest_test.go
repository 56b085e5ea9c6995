//go:build !nobpf

package kernelpath

import (
	"testing"

	"github.com/twillnet/twill/internal/lab/netlab/netlabtest"
)

func TestSelfTestPasses(t *testing.T) {
	netlabtest.Root(t)
	if err := SelfTest(t.Context()); err != nil {
		t.Fatal(err)
	}
}
