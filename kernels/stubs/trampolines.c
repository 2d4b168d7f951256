// One library's functions, by name only: each opens the real library when it is first
// called and goes on there with the arguments it was given. Where the library or the
// function is missing it returns MISSING, an error code of that library. The build
// script says which library (LIBRARY), how the real one may be called (NAMES) and
// which functions it has (SYMBOLS, a list of SYMBOL(index, name)).
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
#define OWN(name) JOIN(JOIN(sconce_, LIBRARY), name)

static const char *const symbol_names[] = {
#define SYMBOL(index, name) #name,
#include SYMBOLS
#undef SYMBOL
};

// Where calls go, once that is known.
__attribute__((visibility("hidden"))) void *OWN(_targets)[sizeof(symbol_names) / sizeof(*symbol_names)];

static void *library;

static void open_library(void) {
    static const char *const names[] = {NAMES};
    for (size_t i = 0; i < sizeof(names) / sizeof(*names) && library == NULL; ++i) {
        library = dlopen(names[i], RTLD_NOW | RTLD_GLOBAL);
    }
}

static pthread_once_t once = PTHREAD_ONCE_INIT;

// Whether the real library cannot be opened.
int OWN(_missing)(void) {
    pthread_once(&once, open_library);
    return library == NULL;
}

static int missing(void) { return MISSING; }

__attribute__((visibility("hidden"), used)) void *OWN(_resolve)(size_t index) {
    pthread_once(&once, open_library);
    void *target = library == NULL ? NULL : dlsym(library, symbol_names[index]);
    if (target == NULL) {
        target = (void *)missing;
    }
    __atomic_store_n(&OWN(_targets)[index], target, __ATOMIC_RELEASE);
    return target;
}

// Keeps every register that may hold an argument (System V ABI, x86-64), and the stack
// aligned: the caller's return address and the index are on it already.
__asm__(".text\n"
        ".local " TEXT(OWN(_first_call)) "\n"
        TEXT(OWN(_first_call)) ":\n"
        "    pushq %rax\n"
        "    pushq %rdi\n"
        "    pushq %rsi\n"
        "    pushq %rdx\n"
        "    pushq %rcx\n"
        "    pushq %r8\n"
        "    pushq %r9\n"
        "    subq $136, %rsp\n"
        "    movups %xmm0, (%rsp)\n"
        "    movups %xmm1, 16(%rsp)\n"
        "    movups %xmm2, 32(%rsp)\n"
        "    movups %xmm3, 48(%rsp)\n"
        "    movups %xmm4, 64(%rsp)\n"
        "    movups %xmm5, 80(%rsp)\n"
        "    movups %xmm6, 96(%rsp)\n"
        "    movups %xmm7, 112(%rsp)\n"
        "    movq 192(%rsp), %rdi\n"
        "    call " TEXT(OWN(_resolve)) "\n"
        "    movq %rax, %r11\n"
        "    movups (%rsp), %xmm0\n"
        "    movups 16(%rsp), %xmm1\n"
        "    movups 32(%rsp), %xmm2\n"
        "    movups 48(%rsp), %xmm3\n"
        "    movups 64(%rsp), %xmm4\n"
        "    movups 80(%rsp), %xmm5\n"
        "    movups 96(%rsp), %xmm6\n"
        "    movups 112(%rsp), %xmm7\n"
        "    addq $136, %rsp\n"
        "    popq %r9\n"
        "    popq %r8\n"
        "    popq %rcx\n"
        "    popq %rdx\n"
        "    popq %rsi\n"
        "    popq %rdi\n"
        "    popq %rax\n"
        "    addq $8, %rsp\n"
        "    jmp *%r11\n");

#define SYMBOL(index, name)                                     \
    __asm__(".text\n"                                           \
            ".globl " #name "\n"                                \
            ".type " #name ", @function\n"                      \
            #name ":\n"                                         \
            "    movq " TEXT(OWN(_targets)) "+8*" #index "(%rip), %r11\n" \
            "    testq %r11, %r11\n"                            \
            "    je 1f\n"                                       \
            "    jmp *%r11\n"                                   \
            "1:  pushq $" #index "\n"                           \
            "    jmp " TEXT(OWN(_first_call)) "\n"              \
            ".size " #name ", .-" #name "\n");
#include SYMBOLS
