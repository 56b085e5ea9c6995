package bench

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestEndsOfAConversationRunOnDifferentCPUs(t *testing.T) {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		t.Fatal(err)
	}
	var got [2][]int
	for i, e := range []end{clientEnd, serverEnd} {
		err := onCPU(e, func() error {
			var now unix.CPUSet
			err := unix.SchedGetaffinity(0, &now)
			got[i] = cpusOf(&now)
			return err
		})
		if err != nil || len(got[i]) != 1 || !may.IsSet(got[i][0]) {
			t.Fatalf("end %v is on %v, %v", e, got[i], err)
		}
	}
	if may.Count() > 1 && got[0][0] == got[1][0] {
		t.Errorf("both are on CPU %d of %v", got[0][0], cpusOf(&may))
	}
}
