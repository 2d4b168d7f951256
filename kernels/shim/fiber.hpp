// Switching between stacks, in a few instructions: ucontext's make two system calls each,
// and under AddressSanitizer clear what it knows of a whole stack.
#pragma once

#include <cstddef>
#include <cstdint>

#include <ucontext.h>

#if defined(__x86_64__)
#define SHIM_OWN_SWITCH 1

// Saves what the System V ABI has a function keep, and where the stack stands.
extern "C" void sconce_shim_switch(void** from, void* to);
__asm__(".text\n"
        ".weak sconce_shim_switch\n"
        ".hidden sconce_shim_switch\n"
        ".type sconce_shim_switch, @function\n"
        "sconce_shim_switch:\n"
        "    pushq %rbp\n"
        "    pushq %rbx\n"
        "    pushq %r12\n"
        "    pushq %r13\n"
        "    pushq %r14\n"
        "    pushq %r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n"
        "    popq %r14\n"
        "    popq %r13\n"
        "    popq %r12\n"
        "    popq %rbx\n"
        "    popq %rbp\n"
        "    ret\n"
        ".size sconce_shim_switch, .-sconce_shim_switch\n");
#endif

namespace shim {

class Context {
public:
    // Makes it begin with `entry`, which never returns, on this stack.
    void begin(unsigned char* stack, size_t bytes, void (*entry)()) {
#if SHIM_OWN_SWITCH
        // As a call leaves it: the return address at 8 below a multiple of 16.
        void** top = reinterpret_cast<void**>(
            (reinterpret_cast<uintptr_t>(stack) + bytes) / 16 * 16);
        *--top = nullptr;
        *--top = reinterpret_cast<void*>(entry);
        for (int saved = 0; saved < 6; ++saved) {
            *--top = nullptr;
        }
        stack_pointer = top;
#else
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = bytes;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
#endif
    }

    // Leaves this one and goes on with the other.
    void switch_to(Context& other) {
#if SHIM_OWN_SWITCH
        sconce_shim_switch(&stack_pointer, other.stack_pointer);
#else
        swapcontext(&context, &other.context);
#endif
    }

private:
#if SHIM_OWN_SWITCH
    void* stack_pointer = nullptr;
#else
    ucontext_t context;
#endif
};

}  // namespace shim
