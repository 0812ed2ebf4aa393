/* Hides AVX-512 and AMX from every library of a process: `python -m benchmarks.cpu --without-avx512`.
 *
 * LD_PRELOAD loads it on Linux and x86. It asks the kernel to make the CPUID instruction trap, which needs an Intel
 * processor since Ivy Bridge. At each trap it runs CPUID itself and clears the bits of AVX-512 and AMX in the answer.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012 /* asm/prctl.h */

typedef int (*sigaction_t)(int, const struct sigaction *, struct sigaction *);
static struct sigaction theirs; /* the process's own handler gets every fault that is no CPUID */

static void allow_cpuid(int allowed) { syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed); }

static void answer(uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d) {
  const uint32_t leaf = *a, sub = *c;
  allow_cpuid(1);
  __asm__ volatile("cpuid" : "+a"(*a), "=b"(*b), "+c"(*c), "=d"(*d));
  allow_cpuid(0);
  if (leaf == 7 && sub == 0) { /* AVX512: F DQ IFMA PF ER CD BW VL; VBMI VBMI2 VNNI BITALG VPOPCNTDQ; 4VNNIW 4FMAPS ... */
    *b &= ~(1u << 16 | 1u << 17 | 1u << 21 | 1u << 26 | 1u << 27 | 1u << 28 | 1u << 30 | 1u << 31);
    *c &= ~(1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14);
    *d &= ~(1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25); /* ... VP2INTERSECT FP16, AMX */
  } else if (leaf == 7 && sub == 1) { /* AVX-VNNI, AVX512-BF16, AMX-FP16; AVX-VNNI-INT8, AMX-COMPLEX, AVX10 */
    *a &= ~(1u << 4 | 1u << 5 | 1u << 21);
    *d &= ~(1u << 4 | 1u << 8 | 1u << 19);
  } else if (leaf == 0xd && sub == 0) { /* keep only the state of x87, SSE and AVX */
    *a &= 7;
  } else if (leaf == 0x1d || leaf == 0x1e || leaf == 0x24) { /* AMX's tiles, AVX10 */
    *a = *b = *c = *d = 0;
  }
}

static void on_fault(int number, siginfo_t *info, void *context) {
  greg_t *at = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *code = (const uint8_t *)at[REG_RIP];
  if (code[0] == 0x0f && code[1] == 0xa2) {
    uint32_t a = at[REG_RAX], b = 0, c = at[REG_RCX], d = 0;
    answer(&a, &b, &c, &d);
    at[REG_RAX] = a, at[REG_RBX] = b, at[REG_RCX] = c, at[REG_RDX] = d;
    at[REG_RIP] += 2;
  } else if (theirs.sa_flags & SA_SIGINFO) {
    theirs.sa_sigaction(number, info, context);
  } else if (theirs.sa_handler != SIG_DFL && theirs.sa_handler != SIG_IGN) {
    theirs.sa_handler(number);
  } else {
    abort();
  }
}

int sigaction(int number, const struct sigaction *new, struct sigaction *old) {
  if (number != SIGSEGV) return ((sigaction_t)dlsym(RTLD_NEXT, "sigaction"))(number, new, old);
  if (old) *old = theirs;
  if (new) theirs = *new;
  return 0;
}

sighandler_t signal(int number, sighandler_t handler) {
  struct sigaction new = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
  return sigaction(number, &new, &old) ? SIG_ERR : old.sa_handler;
}

__attribute__((constructor)) static void hide(void) {
  const struct sigaction ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
  ((sigaction_t)dlsym(RTLD_NEXT, "sigaction"))(SIGSEGV, &ours, NULL);
  if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0)) {
    perror("hide_avx512: this processor or kernel cannot make CPUID trap");
    exit(1);
  }
}
