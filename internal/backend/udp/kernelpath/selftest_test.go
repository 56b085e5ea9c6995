package kernelpath

import "testing"

func TestSelfTestPasses(t *testing.T) {
	if err := SelfTest(t.Context()); err != nil {
		t.Fatal(err)
	}
}
